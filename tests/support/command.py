"""The command line run in this process, and networks for it."""

import json

import torch
import torch.nn.functional as F
from click.testing import CliRunner
from safetensors.torch import save_file
from torch import nn

from deconvfix.cli.main import main

INPUT = ("--input", "x=1x2x5x6")


class Net(nn.Module):
    """Even overlap in `up1`, uneven overlap in `up2`."""

    def __init__(self, width=3):
        super().__init__()
        self.head = nn.Conv2d(2, width, 3, padding=1)
        self.up1 = nn.ConvTranspose2d(width, 5, 4, stride=2, padding=1)
        self.up2 = nn.ConvTranspose2d(5, 2, 3, stride=2, padding=1, output_padding=1)

    def forward(self, x):
        return torch.tanh(self.up2(torch.relu(self.up1(self.head(x)))))


class OddlyNamed(nn.Module):
    """Names that a terminal's markup, an emoji table or HTML would give a meaning to."""

    names = ("[red]", "[/]", "a:b:c", "<script>x", "\\[bold]")

    def __init__(self):
        super().__init__()
        self.ups = nn.ModuleDict({name: nn.ConvTranspose1d(2, 2, 2, 2) for name in self.names})

    def forward(self, x):
        for up in self.ups.values():
            x = up(x)
        return x


class LongNames(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.ModuleDict({"a_long_name_of_a_block_" * 6: nn.ConvTranspose1d(2, 2, 2, 2)})

    def forward(self, x):
        for up in self.inner.values():
            x = up(x)
        return x


class Functional(nn.Module):
    """A call whose weight is computed while it runs: no form but the exact one is possible."""

    def __init__(self):
        super().__init__()
        self.kernel = nn.Parameter(torch.ones(2, 3, 4, 4))
        self.up = nn.ConvTranspose2d(3, 2, 4, stride=2, padding=1)

    def forward(self, x):
        return self.up(F.conv_transpose2d(x, self.kernel, stride=2, padding=1))


def talkative():
    print("Building the network ...")
    return Net()


def not_a_module():
    return {"not": "a module"}


def arch(name):
    return ("--arch", f"{__name__}:{name}")


def run(*arguments):
    return CliRunner().invoke(main, [str(each) for each in arguments])


def run_json(*arguments):
    result = run(*arguments, "--json")
    return json.loads(result.stdout)


def save(folder, model=None, name="net.safetensors"):
    torch.manual_seed(0)
    save_file((model or Net()).state_dict(), folder / name)
    return folder / name


def assert_fails_in_words(result, *fragments):
    """One message of four parts on stderr, exit code 1, and no traceback."""
    assert (result.exit_code, result.stdout, type(result.exception)) == (1, "", SystemExit)
    assert result.stderr.startswith("Error: ")
    assert "Traceback" not in result.stderr
    # where: found; needed. todo.
    assert result.stderr.index(": ") < result.stderr.index("; ") < result.stderr.rindex(". ")
    assert all(fragment in result.stderr for fragment in fragments)


def html_report(tmp_path, model, name, *options):
    path = save(tmp_path, model)
    report = tmp_path / "report.html"
    result = run(
        "convert", path, *arch(name), "-o", tmp_path / "out.pt", "--report", report, *options
    )
    assert result.exit_code == 0, result.output
    return report.read_text(encoding="utf-8")
