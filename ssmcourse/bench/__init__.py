"""How fast is it, and how right? The operators beside what else one can install, on this machine.

    ssmcourse bench selective_scan

`timing` measures, `limits` says what the machine could do at best, `operators` has the cases, `loops`, `peers`
and `jax_peers` the rivals, `contestants` brings them all to one form, `judge` says who is right, `compare` lets
them run, `memory` weighs them, `worker` does this in a process of its own, `session` starts the workers, `tables` prints what came
out, `promises` says where it falls short, and `command` is the command above. The plots are in
`ssmcourse.explore.figures.speed`.
"""
