"""Models of other libraries by name, and folders as transformers and diffusers save them.

`hf:CLASS` is a class of transformers or diffusers with a folder (config.json and safetensors, in one file or
in several with an index), `timm:NAME` and `monai:NAME` are builders for a checkpoint file. Nothing is fetched
and nothing in a folder is executed: the class is named by the user or looked up among the library's own,
weights are safetensors, and code that a folder brings is not looked at.
"""

from __future__ import annotations

import importlib
import json
import os
from pathlib import Path
from typing import Any

from torch import nn

from deconvfix.errors import CheckpointError, MissingPackageError, OptionError
from deconvfix.files import note_read

__all__ = ["CONFIG", "build", "class_of", "is_folder_class", "is_named", "loaded", "weight_files"]

CONFIG = "config.json"
# Names of the weights in a folder: of transformers, of diffusers.
_WEIGHTS = ("model.safetensors", "diffusion_pytorch_model.safetensors")
_HUGGING_FACE = ("transformers", "diffusers")
_LARGEST_JSON = 2**26


def is_named(arch: str) -> bool:
    """Whether `arch` is the name of a model in another library."""
    return arch.partition(":")[0] in ("hf", "timm", "monai")


def is_folder_class(arch: str) -> bool:
    """Whether `arch` is a class whose models are folders."""
    return arch.startswith("hf:")


def build(arch: str, arguments: dict[str, Any], path: Path) -> Any:
    """A new instance of a library's model, its weights as the library draws them.

    Args:
        arch: hf:CLASS, timm:NAME or monai:NAME.
        arguments: Keyword arguments; for `hf` entries of the configuration.
        path: The folder with the configuration, for `hf`.

    Raises:
        MissingPackageError: If the library is not installed.
        OptionError: If it has no such model.
        CheckpointError: If the folder has no configuration.
    """
    library, _, name = arch.partition(":")
    if library == "timm":
        return _package("timm").create_model(name, pretrained=False, **arguments)
    if library == "monai":
        return _member(_package("monai.networks.nets"), name, arch)(**arguments)
    cls = _class(name)
    if not path.is_dir():
        raise CheckpointError(
            str(path),
            "it is no folder",
            f"{arch} needs the folder with {CONFIG} and the weights",
            "Name the folder that save_pretrained wrote",
        )
    config = _json(path / CONFIG) | arguments
    if hasattr(cls, "config_class") and cls.config_class is not None:
        return cls(cls.config_class.from_dict(config))
    return cls.from_config(config)


def loaded(arch: str, arguments: dict[str, Any], folder: Path) -> Any:
    """The model in a folder, its weights as the library itself reads them, in float32.

    Raises:
        MissingPackageError, OptionError, CheckpointError: As `build`, or if the weights are no safetensors.
    """
    weight_files(folder)  # says what is missing, and that it is safetensors
    _json(folder / CONFIG)
    cls = _class(arch.partition(":")[2])
    model = cls.from_pretrained(
        str(folder), local_files_only=True, use_safetensors=True, **arguments
    )
    return model.float()


def class_of(folder: Path) -> str:
    """The class that a folder's configuration names, as `hf:CLASS`.

    Raises:
        CheckpointError: If it names none, or several.
    """
    config = _json(folder / CONFIG)
    names = [config["_class_name"]] if "_class_name" in config else config.get("architectures")
    if not isinstance(names, list) or len(names) != 1 or not isinstance(names[0], str):
        raise CheckpointError(
            str(folder / CONFIG),
            f"the classes that it names are {names!r}",
            "one class of transformers or diffusers is needed",
            "Build the model yourself, and give it to deconvfix.load",
        )
    return f"hf:{names[0]}"


def weight_files(folder: Path) -> list[Path]:
    """The files with the weights of a folder, none of them outside of it.

    Raises:
        CheckpointError: If there are none, or they are no safetensors.
    """
    for name in _WEIGHTS:
        if (folder / name).is_file():
            return [folder / name]
        index = folder / f"{name}.index.json"
        if not index.is_file():
            continue
        weights = _json(index).get("weight_map")
        parts = sorted(set(weights.values())) if isinstance(weights, dict) and weights else []
        for part in parts:
            plain = isinstance(part, str) and Path(part).name == part and "\\" not in part
            # What is no regular file, such as a pipe, would be waited for.
            if not plain or not part.endswith(".safetensors") or not (folder / part).is_file():
                raise _unusable(
                    index, f"it names {part!r}", "names of .safetensors files beside it are"
                )
        if parts:
            return [folder / part for part in parts]
        raise _unusable(index, "it has no weight_map", "a map from weights to files is")
    raise _unusable(folder, "it has no safetensors with weights", f"{' or '.join(_WEIGHTS)} is")


def _unusable(path: Path, found: str, needed: str) -> CheckpointError:
    todo = "Save the model again with save_pretrained(folder, safe_serialization=True)"
    return CheckpointError(str(path), found, f"{needed} needed; no pickle is read", todo)


def _json(path: Path) -> dict[str, Any]:
    try:
        if not path.is_file() or path.stat().st_size > _LARGEST_JSON:
            raise ValueError("there is no such file, or it is too large")
        note_read(path)
        value = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(value, dict):
            raise ValueError("it is no JSON object")
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(
            str(path),
            f"it cannot be read ({error})",
            "a folder as save_pretrained writes it is needed",
            "Check that the folder is complete",
        ) from error
    return value


def _class(name: str) -> Any:
    """A model's class, of whichever of the two libraries has it."""
    missing = []
    for library in _HUGGING_FACE:
        try:
            found = getattr(_package(library), name, None)
        except MissingPackageError as error:
            missing.append(error)
            continue
        if (
            isinstance(found, type)
            and issubclass(found, nn.Module)
            and hasattr(found, "from_pretrained")
        ):
            return found
    if missing:
        raise missing[0]
    raise _unknown(f"hf:{name}", " and ".join(_HUGGING_FACE))


def _member(module: Any, name: str, arch: str) -> Any:
    found = getattr(module, name, None)
    if found is None:
        raise _unknown(arch, arch.partition(":")[0])
    return found


def _unknown(arch: str, where: str) -> OptionError:
    return OptionError(
        "arch",
        f"the value is {arch!r}, and no model of {where} has this name",
        "hf:CLASS, timm:NAME or monai:NAME is needed, or module:callable",
        "Correct the name",
    )


def _package(name: str) -> Any:
    # Before the first import: nothing is fetched, whatever a configuration says.
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    package = name.partition(".")[0]
    try:
        importlib.import_module(package)
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != package:
            raise
        raise MissingPackageError(
            "arch",
            f"the package {package} is not installed",
            "it has the code of the model",
            f"Install it with: pip install {package}",
        ) from error
    # Above all a torchvision of another build than torch.
    except (ImportError, RuntimeError) as error:
        raise MissingPackageError(
            "arch",
            f"the package {package} does not import ({type(error).__name__}: {error})",
            "it and the packages that it needs must match the torch that is installed",
            "Install torch and torchvision of the same build, in one command",
        ) from error
