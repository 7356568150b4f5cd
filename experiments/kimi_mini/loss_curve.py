"""Draw loss_curve.png from training_log.csv: python -m experiments.kimi_mini.loss_curve"""

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from .proof import HERE, held_out_documents, xz_bits_a_byte


def main() -> None:
    log = np.genfromtxt(HERE / "training_log.csv", delimiter=",", names=True)
    figure, (loss, routing) = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    loss.plot(log["tokens_m"], log["train_nats_per_token"], label="train, nats a token")
    loss.plot(log["tokens_m"], log["heldout_bits_per_byte"], label="held out, bits per byte")
    loss.axhline(xz_bits_a_byte(held_out_documents()), color="grey", linestyle=":", label="xz -9e, bits per byte")
    routing.plot(log["tokens_m"], log["lru_hit_25"], label="LRU hit rate, 25 % resident")
    routing.plot(log["tokens_m"], log["neighbour_correlation"], label="router score correlation, neighbours")
    for axes in (loss, routing):
        axes.set_xlabel("tokens, M")
        axes.set_ylim(bottom=0)
        axes.legend()
        axes.grid(alpha=0.3)
    figure.savefig(HERE / "loss_curve.png", dpi=110)


if __name__ == "__main__":
    main()
