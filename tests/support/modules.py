"""Models with transposed convolutions in all places, and what is asserted of their conversion."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrize, prune
from torch.utils._python_dispatch import TorchDispatchMode

import deconvfix


def integers(shape, seed, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-2, 3, tuple(shape), generator=generator).to(dtype)


def fill(module):
    """Small integers in every parameter."""
    with torch.no_grad():
        for seed, parameter in enumerate(module.parameters()):
            parameter.copy_(integers(parameter.shape, seed))
    return module


def up(c_in=3, c_out=4, **options):
    return fill(nn.ConvTranspose2d(c_in, c_out, (4, 3), (2, 3), (1, 0), (0, 1), **options))


def drawn(c_in=3, c_out=4):
    """With real numbers, for layers that divide by a norm."""
    torch.manual_seed(0)
    return nn.ConvTranspose2d(c_in, c_out, (4, 3), (2, 3), (1, 0), (0, 1))


X = integers((2, 3, 4, 5), 99)


def transposed_calls(model, *args, **kwargs):
    """Weight shapes of the transposed convolutions that the dispatcher really runs."""
    seen = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func._schema.name == "aten::convolution" and args[6]:
                seen.append(tuple(args[1].shape))
            return func(*args, **(kwargs or {}))

    with Watch(), torch.no_grad():
        model(*args, **kwargs)
    return seen


def convert(model, *args, **options):
    return deconvfix.convert(model, example_inputs=args or None, **options)


def decisions(conversion):
    return {each.name: each.decision for each in conversion.plan.decisions}


def assert_same_function(conversion, model, *args):
    """Equal outputs on integers, nothing transposed left, and the report says so."""
    with torch.no_grad():
        assert torch.equal(conversion.model(*args), model(*args))
    assert transposed_calls(conversion.model, *args) == []
    assert conversion.report.ok
    assert conversion.report.parity.ok


class TwoNames(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = up(3, 3)
        self.block = nn.Sequential(nn.ReLU(), self.first)

    def forward(self, x):
        return self.block(self.first(x))


class CalledTwice(nn.Module):
    def __init__(self):
        super().__init__()
        self.up = up(3, 3)

    def forward(self, x):
        return self.up(self.up(x).relu())


class Containers(nn.Module):
    def __init__(self):
        super().__init__()
        self.items = nn.ModuleList([up(), up()])
        self.table = nn.ModuleDict({"a": nn.Sequential(up()), "b": up()})

    def forward(self, x):
        return sum(each(x) for each in [*self.items, *self.table.values()])


class Nested(nn.Module):
    """Contains a layer, calls a function, and has children that do both."""

    def __init__(self, depth=1):
        super().__init__()
        self.up = up(3, 3)
        self.weight = nn.Parameter(integers((3, 3, 2, 3), depth))
        self.inner = Nested(depth - 1) if depth else nn.ReLU()

    def forward(self, x):
        x = F.conv_transpose2d(self.up(x), self.weight, stride=(2, 1)).clamp(-2, 2)
        return self.inner(x)


class Tied(nn.Module):
    """The decoder's kernel is the encoder's, as in autoencoders with tied weights."""

    def __init__(self):
        super().__init__()
        self.encode = fill(nn.Conv2d(3, 4, (4, 3), (2, 3), bias=False))
        self.decode = nn.ConvTranspose2d(4, 3, (4, 3), (2, 3), bias=False)
        self.decode.weight = self.encode.weight

    def forward(self, x):
        return self.decode(self.encode(x).relu())


class TiedByCall(nn.Module):
    """The layer's weight is used once more, by a function."""

    def __init__(self):
        super().__init__()
        self.up = up(3, 4)

    def forward(self, x):
        return F.conv2d(self.up(x), self.up.weight)


class UsesWeightElsewhere(nn.Module):
    def __init__(self):
        super().__init__()
        self.up = up(3, 4)

    def forward(self, x):
        return F.conv_transpose2d(x, self.up.weight, self.up.bias, 2) + self.up(x).mean()


class Causal(nn.ConvTranspose2d):
    def forward(self, x):
        return super().forward(x)[..., : -self.stride[-1]]


class Plain(nn.ConvTranspose2d):
    """A subclass without a forward of its own."""


class Functional(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(integers((3, 4, 4, 3), 1))
        self.bias = nn.Parameter(integers((4,), 2))

    def forward(self, x):
        return F.conv_transpose2d(x, self.weight, self.bias, stride=(2, 3), padding=(1, 0))


class Modulated(nn.Module):
    """StyleGAN2: a weight for each sample, the batch as groups."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(integers((4, 3, 4, 3), 1))

    def forward(self, x):
        n, c_in, h, w = x.shape
        style = x.amax((2, 3))
        # (C_out, C_in, *k) -> (N, C_in, C_out, *k) -> (N*C_in, C_out, *k)
        weight = (self.weight[None] * style[:, None, :, None, None]).transpose(1, 2)
        weight = weight.reshape(n * c_in, 4, *self.weight.shape[2:])
        y = F.conv_transpose2d(x.reshape(1, n * c_in, h, w), weight, stride=(2, 3), groups=n)
        return y.reshape(n, 4, *y.shape[2:])


class InPythonList(nn.Module):
    def __init__(self):
        super().__init__()
        self.hidden = [up()]

    def forward(self, x):
        return self.hidden[0](x)


MODELS = {
    "bare layer": up,
    "sequential": lambda: nn.Sequential(up(), nn.ReLU(), up(4, 2)),
    "two names": TwoNames,
    "called twice": CalledTwice,
    "containers": Containers,
    "layers and calls, nested": Nested,
    "tied to a convolution": Tied,
    "tied by a call": TiedByCall,
    "weight used by another call": UsesWeightElsewhere,
    "two tied layers": lambda: tied_layers(),
    "subclass with its own forward": lambda: nn.Sequential(fill(Causal(3, 4, (4, 3), (2, 3)))),
    "subclass": lambda: nn.Sequential(fill(Plain(3, 4, (4, 3), (2, 3)))),
    "function": Functional,
    "function in a child": lambda: nn.Sequential(nn.ReLU(), Functional()),
    "modulated": Modulated,
    "layer in a python list": InPythonList,
    "data parallel": lambda: nn.DataParallel(nn.Sequential(up(), Functional4())),
    "grouped": lambda: nn.Sequential(fill(nn.ConvTranspose2d(3, 6, 3, (2, 1), groups=3))),
    "scaled by parametrization": lambda: parametrized(Double()),
    "two parametrizations": lambda: parametrized(Double(), Negative()),
    "parametrized bias": lambda: parametrized(Double(), name="bias"),
    "pruned weight": lambda: pruned("weight"),
}


class Functional4(Functional):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(integers((4, 4, 4, 3), 1))


class Double(nn.Module):
    def forward(self, value):
        return 2 * value

    def right_inverse(self, value):
        return value / 2


class Negative(nn.Module):
    def forward(self, value):
        return -value


def parametrized(*parametrizations_, name="weight"):
    model = nn.Sequential(up())
    for each in parametrizations_:
        parametrize.register_parametrization(model[0], name, each)
    return model


def pruned(name):
    model = nn.Sequential(up())
    prune.l1_unstructured(model[0], name, amount=2)
    return model


def tied_layers():
    model = nn.Sequential(up(3, 3, bias=False), nn.ReLU(), up(3, 3, bias=False))
    model[2].weight = model[0].weight
    return model


def fingerprint(model):
    modules = tuple(
        (name, id(module), type(module), module.training, tuple(vars(module)), hooks(module))
        for name, module in model.named_modules()
    )
    values = tuple((key, value.numpy().tobytes()) for key, value in model.state_dict().items())
    return modules, values, tuple(id(parameter) for parameter in model.parameters())


def hooks(module):
    return tuple(tuple(value) for key, value in vars(module).items() if key.endswith("hooks"))


W = integers((3, 4, 4, 3), 1)

B = integers((4,), 2)


class Calls(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)
