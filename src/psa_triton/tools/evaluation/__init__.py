"""How close videos made with PSA are to dense ones, at what cost, and what was read: numbers, tables and a report.

Videos of one prompt and seed (`compare`, `levels_record`, `measures`) become a case's files and numbers (`case`,
`frames`, `report`); the numbers of all cases become means, tables (`summary`) and verdicts (`verdict`).
"""
