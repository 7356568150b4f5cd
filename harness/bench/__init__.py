"""Benchmarks of the search, on a fake engine of known truth.

python -m harness.bench samplers     what the samplers find in equal budgets, and what asking them costs
python -m harness.bench ask          what asking and telling costs in a long study's storage
python -m harness.bench soak         what becomes of a night of kills, hangs, memory bursts and full disks
"""
