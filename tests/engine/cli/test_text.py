"""`generate` as users run it: text on standard output, figures and errors on standard error."""

from __future__ import annotations

import io
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from tiny import add_chat_template, make

from engine.__main__ import main
from engine.cli.text import prompt_of, show, stop_on_interrupt

ROOT = Path(__file__).resolve().parents[3]
Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def chat_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(add_chat_template(make(tmp_path_factory.mktemp("chat") / "tiny", "qwen3_moe")))


def run(words: list[str], stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "engine", *words]
    return subprocess.run(command, input=stdin, capture_output=True, cwd=ROOT, timeout=120)


def figures(err: str) -> dict[str, str]:
    return {name: text.strip() for name, _, text in (line.partition(":") for line in err.strip().splitlines())}


def test_generate_prints_text_and_what_it_took(checkpoint: Callable[..., Path], capsys: Capture) -> None:
    path = str(checkpoint("deepseek_v3", None, True))
    assert main(["generate", "--model", path, "--prompt", "The mill", "--max-tokens", "8", "--cache-gb", "0.0005"]) == 0
    out, err = capsys.readouterr()
    assert out.endswith("\n") and "tok/s" not in out
    shown = figures(err)
    assert shown["prompt"].startswith("8 tokens") and "first token" in shown["prompt"]
    assert "8 tokens" in shown["decode"] and "tok/s" in shown["decode"] and "--max-tokens 8" in shown["decode"]
    assert 0 <= float(shown["hit rate"]) <= 1
    assert float(shown["read"].split()[0]) > 0 and "GB" in shown["peak memory"]
    assert shown["mode"] == "streamed float32 cpu buffered"


def test_the_prompt_comes_through_a_pipe_and_the_text_goes_into_one(chat_model: str, capsys: Capture) -> None:
    words = ["generate", "--model", chat_model, "-m", "6"]
    assert main([*words, "--prompt", "The mill"]) == 0
    expected = capsys.readouterr().out
    piped = run([*words, "--prompt", "-"], b"The mill\n")
    assert piped.returncode == 0 and expected.endswith("\n") and piped.stderr.startswith(b"\nprompt:")
    assert piped.stdout.decode() == expected


def test_the_chat_template_applies_unless_it_is_ignored(chat_model: str, capsys: Capture) -> None:
    words = ["generate", "--model", chat_model, "-m", "2", "--prompt", "The mill"]
    tokens = []
    for more in ([], ["--system-prompt", "Be brief."], ["--ignore-chat-template"]):
        assert main([*words, *more]) == 0
        tokens.append(int(figures(capsys.readouterr().err)["prompt"].split()[0]))
    assert tokens == [
        len("[user]The mill.[assistant]"),
        len("[system]Be brief..[user]The mill.[assistant]"),
        len("The mill"),
    ]


def test_the_same_seed_gives_the_same_text(chat_model: str, capsys: Capture) -> None:
    texts = []
    for seed in ("1", "1", "2"):
        words = ["generate", "--model", chat_model, "-m", "12", "--prompt", "x", "--temp", "1.5", "--top-p", "0.95"]
        assert main([*words, "--min-p", "0.001", "--sample-top-k", "50", "--seed", seed]) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1] != texts[2]


def test_a_closed_pipe_ends_without_a_traceback(chat_model: str) -> None:
    command = [sys.executable, "-m", "engine", "generate", "--model", chat_model, "-m", "60", "--prompt", "x"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b"" and process.wait(timeout=120) == 141


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--top-k", "4"], "--top-k has two meanings here; write --sample-top-k N"),
        (["--temp", "-1"], "temperature=-1 is neither 0"),
        (["--temperature", "-1"], "temperature=-1 is neither 0"),
        (["--stop", ""], "every stop string needs at least one character"),
        (["--max-tokens", "0"], "max_tokens=0 is below 1"),
        (["--seed", "-1"], "seed=-1 is outside"),
        (["--prompt", ""], "the prompt is empty"),
        (["--prompt", "\udcff"], "--prompt is not UTF-8"),
        (["--prompt", "x" * 600], "at most 512 in this model (max_position_embeddings)"),
        (
            ["--system-prompt", "x", "--ignore-chat-template"],
            "--system-prompt has no effect: --ignore-chat-template is given",
        ),
        (["--chat-template-args", '{"tokenize": 1}'], "the chat template's argument tokenize is set by headrace"),
        (["--knob-top-k", "9"], "top_k=9 is above the 3 experts per token"),
    ],
)
def test_a_mistake_is_one_line(chat_model: str, capsys: Capture, words: list[str], message: str) -> None:
    assert main(["generate", "--model", chat_model, "--prompt", "x", *words]) == 2
    out, err = capsys.readouterr()
    assert message in err and err.count("\n") == 1 and err.startswith("error: ") and not out


def test_a_system_prompt_needs_a_template(checkpoint: Callable[..., Path], capsys: Capture) -> None:
    path = str(checkpoint("qwen3_moe"))
    assert main(["generate", "--model", path, "--prompt", "x", "--system-prompt", "y"]) == 2
    assert "--system-prompt has no effect: the checkpoint has no chat template" in capsys.readouterr().err


def test_an_interrupted_text_keeps_its_figures(chat_model: str) -> None:
    command = [sys.executable, "-m", "engine", "generate", "--model", chat_model, "-m", "480", "--prompt", "x"]
    command += ["--temp", "1", "--repetition-penalty", "1.5"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT) as process:
        assert process.stdout is not None and process.stderr is not None
        begun = process.stdout.read(1)
        process.send_signal(signal.SIGINT)
        rest, err = process.communicate(timeout=120)
    assert begun and rest.endswith(b"\n") and process.returncode == 130
    shown = figures(err.decode())
    assert shown["decode"].endswith("interrupted") and 0 < int(shown["decode"].split()[0]) < 480


def test_an_encoding_without_a_character_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii"))
    show("a ü\n")
    assert written.getvalue() == b"a ?\n"


def test_the_prompt_of_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    def given(content: bytes, *, terminal: bool = False) -> None:
        stdin = SimpleNamespace(buffer=io.BytesIO(content), isatty=lambda: terminal)
        monkeypatch.setattr(sys, "stdin", stdin)

    given("zwei\nZeilen ü\r\n".encode())
    assert prompt_of("-") == "zwei\nZeilen ü"
    given(b"x\n")
    assert prompt_of(None) == "x"
    for content, terminal, message in (
        (b"", True, "generate needs a prompt"),
        (b"\n", False, "the prompt is empty"),
        (b"ab\xff", False, r"not UTF-8 \(byte 2\)"),
    ):
        given(content, terminal=terminal)
        with pytest.raises(Exception, match=message):
            prompt_of(None)


def test_the_first_interrupt_asks_and_the_second_ends() -> None:
    before = signal.getsignal(signal.SIGINT)
    with stop_on_interrupt() as interrupt:
        assert not interrupt.is_set()
        signal.raise_signal(signal.SIGINT)
        assert interrupt.is_set()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before
