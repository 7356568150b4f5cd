"""Benchmarks of the engine: each prints its ceiling beside the measurement, and one JSON document as its last line.

    python -m engine bench io           the reader against plain large reads of the same files
    python -m engine bench decode       decoding at several cache sizes against the resident model
    python -m engine bench beside PATH  decoding and bookkeeping against another checkout of Headrace
    python -m engine bench products     products of float32 matrices by the extension against MLX's own
    python -m engine bench hits         cost of the bookkeeping of a streamed layer when every expert is cached
    python -m engine bench open         opening and planning, with the peak of memory
    python -m engine bench lossy        what the lossy knobs save and what they cost in quality
    python -m engine bench trace        decoding with a trace being recorded against decoding without
    python -m engine bench bits         quality of bit plans at equal bytes
    python -m engine bench grids        error of packed weights, beside MLX's and the smallest possible
    python -m engine bench pack         packing against copying, and the cost of verify_reads
    python -m engine bench make FOLDER  writes a checkpoint of random weights in the shape of a real model

Machines are shared and noisy. Contenders are therefore measured in turns, in one process or in processes side by side, and
reported as a median with quartiles. Absolute figures hold for one machine at one time; ratios carry over to others. The
benchmarks may import every room of the engine, and only the command line imports them.
"""
