"""`./flyball torture`: processes are killed under load, and what comes out is held against what must come out.

    facts.py     what goes in: amounts, and the ways to spoil them
    checker.py   what must come out, worked out from the facts alone, and what is missing, repeated or wrong
    traffic.py   the steady load, the readers
    bed.py       the instance, fault after fault
    faults.py    one function a fault
    run.py       fault after fault, and the report

The domain is `drill`. The checker imports nothing of Flyball: it is the second opinion.
"""
