"""The fast code: one folder per operator, one file per backend.

Imported as `ssmcourse.kernels`; it imports nothing of `ssmcourse` but itself.
"""
