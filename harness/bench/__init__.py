"""Benchmarks of the search, most on fake engines whose true optimum is known; nothing imports them.

python -m harness.bench samplers     hypervolume of the samplers at equal budgets, and the cost of a proposal
python -m harness.bench ask          cost of a proposal and of its result in a long study's storage
python -m harness.bench shared       throughput of several workers in one study
python -m harness.bench confirm      gain of confirmation, with injected noise
python -m harness.bench hours        where the time of `make search` goes
python -m harness.bench soak         faults, kills and full disks, after which every trial must be accounted for
"""
