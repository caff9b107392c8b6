"""start.run_memory: wrong answers that learners write, and right ones in other styles."""

import numpy as np
import torch


def late(a, x):
    h, out = torch.zeros((), dtype=x.dtype), []
    for x_t in x:
        out.append(h)
        h = a * h + x_t
    return torch.stack(out)


def no_decay(a, x):
    return torch.cumsum(x, 0)


def one_tensor_in_the_list(a, x):
    h, out = torch.zeros((), dtype=x.dtype), []
    for x_t in x:
        h *= a
        h += x_t
        out.append(h)
    return torch.stack(out)


def running_average(a, x):
    h, out = torch.zeros((), dtype=x.dtype), []
    for x_t in x:
        h = a * h + (1 - a) * x_t
        out.append(h)
    return torch.stack(out)


def swapped(a, x):
    h, out = torch.zeros((), dtype=x.dtype), []
    for x_t in x:
        h = h + a * x_t
        out.append(h)
    return torch.stack(out)


def two_inputs_only(a, x):
    out = [x[0]]
    for t in range(1, len(x)):
        out.append(a * x[t - 1] + x[t])
    return torch.stack(out)


def first_input_twice(a, x):
    h, out = x[0], []
    for x_t in x:
        h = a * h + x_t
        out.append(h)
    return torch.stack(out)


def by_position(a, x):
    return x * a ** torch.arange(len(x))


def newest_first(a, x):
    h, out = torch.zeros((), dtype=x.dtype), []
    for x_t in x:
        h = a * h + x_t
        out.insert(0, h)
    return torch.stack(out)


def forgetting_what_is_kept(a, x):
    h, out = torch.zeros((), dtype=x.dtype), []
    for x_t in x:
        h = h - a * h + x_t
        out.append(h)
    return torch.stack(out)


def float32_always(a, x):
    out, h = torch.zeros(len(x), dtype=torch.float32), 0.0
    for t in range(len(x)):
        h = a * h + x[t]
        out[t] = h
    return out


def no_gradient(a, x):
    h, out = 0.0, []
    for x_t in x.tolist():
        h = a * h + x_t
        out.append(h)
    return torch.tensor(out, dtype=x.dtype)


def by_ratios(a, x):
    powers = torch.tensor(a, dtype=x.dtype) ** torch.arange(len(x))
    return powers * (x / powers).cumsum(0)


def sign_lost(a, x):
    rate = np.log(abs(a)) if a else -1e9
    h, out = torch.zeros((), dtype=x.dtype), []
    for x_t in x:
        h = float(np.exp(rate)) * h + x_t
        out.append(h)
    return torch.stack(out)


def two_inputs_at_least(a, x):
    out = [x[0], a * x[0] + x[1]]
    for x_t in x[2:]:
        out.append(a * out[-1] + x_t)
    return torch.stack(out)


MUTANTS = {
    "late": (late, "one step late"),
    "no_decay": (no_decay, "never multiply h by a"),
    "one_tensor_in_the_list": (one_tensor_in_the_list, "the same tensor many times"),
    "running_average": (running_average, "a running average"),
    "swapped": (swapped, "changed places"),
    "two_inputs_only": (two_inputs_only, "forgets all but the last input"),
    "first_input_twice": (first_input_twice, "h starts at x[0]"),
    "by_position": (by_position, "fading goes by position"),
    "newest_first": (newest_first, "newest first"),
    "forgetting_what_is_kept": (forgetting_what_is_kept, "you keep 1 - a"),
    "float32_always": (float32_always, "without dtype="),
    "no_gradient": (no_gradient, "cuts the graph"),
    "by_ratios": (by_ratios, "divide by powers of a"),
    "sign_lost": (sign_lost, "the sign of a is lost"),
    "two_inputs_at_least": (two_inputs_at_least, "IndexError"),
}
PASS_EXAMPLE = {
    "forgetting_what_is_kept",
    "float32_always",
    "no_gradient",
    "by_ratios",
    "sign_lost",
    "two_inputs_at_least",
}


def in_place_on_its_own_tensor(a, x):
    out = torch.empty_like(x)
    out[0] = x[0]
    for t in range(1, len(x)):
        out[t] = a * out[t - 1].clone() + x[t]
    return out


def by_matrix(a, x):
    l = len(x)
    M = torch.eye(l, dtype=x.dtype)
    for k in range(1, l):
        M = M + torch.diag(torch.full((l - k,), float(a) ** k, dtype=x.dtype), -k)
    return M @ x


def recursive(a, x):
    if len(x) == 1:
        return x.clone()
    before = recursive(a, x[:-1])
    return torch.cat([before, a * before[-1:] + x[-1:]])


def by_doubling(a, x):
    """Log-many shifted sums: h_t over windows of 1, 2, 4, ... inputs."""
    h, step = x, 1
    while step < len(x):
        h = h + a**step * torch.cat([h.new_zeros(step), h[:-step]])
        step *= 2
    return h


def by_convolution(a, x):
    kernel = torch.tensor([float(a) ** k for k in range(len(x))], dtype=x.dtype)
    padded = torch.cat([x.new_zeros(len(x) - 1), x])
    return torch.nn.functional.conv1d(padded[None, None], kernel.flip(0)[None, None])[0, 0]


class Memory:
    """An object that is called like a function."""

    def __call__(self, a, x):
        h, out = 0, []
        for x_t in x.unbind():
            h = h * a + x_t
            out += [h]
        return torch.stack(out)


RIGHT = {
    "in_place_on_its_own_tensor": in_place_on_its_own_tensor,
    "by_matrix": by_matrix,
    "recursive": recursive,
    "by_doubling": by_doubling,
    "by_convolution": by_convolution,
    "object": Memory(),
}
