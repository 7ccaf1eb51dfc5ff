"""Torch-TensorRT through a stand-in that knows the real parameters: compile, save, load, and one line for what is missing."""

from __future__ import annotations

import logging
import re
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from convnext_deploy.artifacts.details import Profile
from convnext_deploy.errors import ArtifactError, BackendUnavailableError, ExportError
from convnext_deploy.exporters.tensorrt import torch_tensorrt
from convnext_deploy.exporters.tensorrt.torch_tensorrt import (
    compile_program,
    import_torch_tensorrt,
    load_program,
    save_program,
)
from convnext_deploy.models.convnext import ConvNeXt
from tests.exporters.torch_tensorrt_stand_in import Script, install_stand_in
from tests.shared import slow_except

CLASSES, IMAGE = 5, (3, 32, 32)
PROFILE = Profile(1, 1, 4)


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Script:
    """A machine with the stand-in; the tests say how it acts."""
    script = Script()
    install_stand_in(monkeypatch, script)
    return script


@pytest.fixture
def network() -> ConvNeXt:
    torch.manual_seed(0)
    return ConvNeXt((1, 1, 1, 1), (8, 8, 8, 8), num_classes=CLASSES).eval()


def compile_small(network: ConvNeXt, profile: Profile = PROFILE, *, half: bool = False) -> nn.Module:
    return compile_program(
        network,
        precision="fp16" if half else "fp32",
        profile=profile,
        image=IMAGE,
        workspace_mib=256,
        optimization_level=2,
    )


@pytest.mark.heavy
@pytest.mark.parametrize("half", slow_except((True,), (False, True)))
@pytest.mark.parametrize("profile", slow_except((PROFILE,), (PROFILE, Profile(1, 2, 2), Profile(1, 1, 1))))
def test_program_computes_the_network_after_it_was_saved_and_loaded(
    script: Script, network: ConvNeXt, tmp_path: Path, profile: Profile, half: bool
) -> None:
    path = tmp_path / "model.ep"
    save_program(compile_small(network, profile, half=half), path, profile=profile, image=IMAGE)
    program = load_program(path)
    for batch in {1, profile.maximum}:
        images = torch.randn(batch, *IMAGE)
        with torch.no_grad():
            expected, found = network(images), program(images)
        assert found.dtype is torch.float32
        assert (found - expected).abs().max() <= (0.01 if half else 1e-5) * expected.abs().max()


def test_compile_program_gives_the_exact_profile(script: Script, network: ConvNeXt) -> None:
    compile_small(network, Profile(1, 3, 8))
    (images,) = script.compiled_with[0]["arg_inputs"]
    shapes = {"min_shape": (1, *IMAGE), "opt_shape": (3, *IMAGE), "max_shape": (8, *IMAGE)}
    assert images.specification == {"profiles": [shapes], "dtype": torch.float32, "name": "images"}


def test_compile_program_gives_one_shape_where_the_batch_is_fixed(script: Script, network: ConvNeXt) -> None:
    compile_small(network, Profile(1, 1, 1))
    (images,) = script.compiled_with[0]["arg_inputs"]
    assert images.specification == {"shape": (1, *IMAGE), "dtype": torch.float32, "name": "images"}


def test_compile_program_passes_its_limits_and_leaves_nothing_to_pytorch(script: Script, network: ConvNeXt) -> None:
    compile_small(network)
    settings = script.compiled_with[0]
    assert (settings["workspace_size"], settings["optimization_level"]) == (256 << 20, 2)
    assert settings["require_full_compilation"] is True


@pytest.mark.heavy
@pytest.mark.parametrize("half", [False, True])
def test_compile_program_writes_the_precision_into_the_program(script: Script, network: ConvNeXt, half: bool) -> None:
    compile_small(network, half=half)
    (program,) = script.programs
    dtypes = {parameter.dtype for name, parameter in program.named_parameters() if "conv" in name}
    assert dtypes == {torch.float16 if half else torch.float32}


@pytest.mark.heavy
@pytest.mark.parametrize("parts", [(), ("_run_on_acc_0", "_run_on_gpu_1"), ("_run_on_gpu_0",)])
def test_compile_program_raises_when_a_part_would_run_in_pytorch(
    script: Script, network: ConvNeXt, parts: tuple[str, ...]
) -> None:
    script.parts = parts
    with pytest.raises(ExportError, match=r"^[^\n]*expected one engine\.$"):
        compile_small(network)


@pytest.mark.heavy
def test_compile_program_gives_the_words_of_tensorrt_in_one_line(script: Script, network: ConvNeXt) -> None:
    # When a build fails, the real one logs the reason and raises an assertion that says nothing.
    script.logged, script.fails = ("out of memory\n on the GPU", "out of memory\n on the GPU"), ""
    with pytest.raises(ExportError, match=r"^Torch-TensorRT could not build an engine: out of memory on the GPU$"):
        compile_small(network)
    script.logged, script.fails = (), "not fully\nsupported"
    with pytest.raises(ExportError, match=r"^Torch-TensorRT could not build an engine: not fully supported$"):
        compile_small(network)
    script.fails = ""
    with pytest.raises(ExportError, match=r"^Torch-TensorRT could not build an engine: AssertionError$"):
        compile_small(network)


def test_compile_program_raises_on_errors_that_tensorrt_only_logs(script: Script, network: ConvNeXt) -> None:
    script.logged = ("a setting is ignored",)
    with pytest.raises(ExportError, match=r"^Torch-TensorRT could not build an engine: a setting is ignored$"):
        compile_small(network)


def test_compile_program_shows_nothing_of_its_own_and_leaves_loggers_as_they_were(
    script: Script, network: ConvNeXt, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    names = ("torch_tensorrt", torch_tensorrt._LOGGER)
    before = [(g.level, g.propagate, list(g.handlers)) for g in map(logging.getLogger, names)]
    script.logged = ("an error",)
    with pytest.raises(ExportError):
        compile_small(network)
    assert capfd.readouterr() == ("", "")
    assert [record for record in caplog.records if record.name.startswith("torch_tensorrt")] == []
    assert before == [(g.level, g.propagate, list(g.handlers)) for g in map(logging.getLogger, names)]


def test_save_program_gives_the_words_of_torch_tensorrt(script: Script, network: ConvNeXt, tmp_path: Path) -> None:
    compiled = compile_small(network)
    script.fails = "no space\nleft"
    with pytest.raises(ExportError, match=r"^Torch-TensorRT could not save model\.ep: no space left$"):
        save_program(compiled, tmp_path / "model.ep", profile=PROFILE, image=IMAGE)


def test_load_program_raises_one_line_when_the_file_is_no_program(
    script: Script, network: ConvNeXt, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "model.ep"
    save_program(compile_small(network), path, profile=PROFILE, image=IMAGE)
    whole = path.read_bytes()
    folder = tmp_path / "folder"
    folder.mkdir()
    contents = {"empty": b"", "half": whole[: len(whole) // 2], "words": b"no program, just words\n"}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    for found in (*(tmp_path / name for name in contents), folder, tmp_path / "missing"):
        with pytest.raises(ArtifactError, match=rf"^{re.escape(str(found))} is not a program[^\n]+$"):
            load_program(found)
    assert capfd.readouterr() == ("", "")


def test_load_program_raises_when_the_file_holds_something_else(
    script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The real one falls back to TorchScript.
    monkeypatch.setattr(sys.modules["torch_tensorrt"], "load", lambda path: nn.Linear(1, 1))
    with pytest.raises(ArtifactError, match=r"^[^\n]*not an exported program but a Linear; export it again\.$"):
        load_program(tmp_path / "model.ep")


@pytest.fixture
def ready(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine that looks as if it had a GPU, and a folder for packages that it finds first; Torch-TensorRT is not there."""
    monkeypatch.setattr(torch_tensorrt, "gpu_error", lambda: None)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "torch_tensorrt", raising=False)
    return tmp_path


def write_package(folder: Path, code: str) -> None:
    (folder / "torch_tensorrt").mkdir()
    (folder / "torch_tensorrt" / "__init__.py").write_text(code, encoding="utf-8")


def write_release(folder: Path, name: str, release: str) -> None:
    info = folder / f"{name}-{release}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {release}\n", encoding="utf-8")


def test_import_torch_tensorrt_prints_the_install_line_when_it_is_missing(
    ready: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [str(ready)])
    with pytest.raises(BackendUnavailableError, match=r"^torch_tensorrt is not installed; pip install '[^\n]+'\.$"):
        import_torch_tensorrt()


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        # what release 2.14 does without the libraries of TensorRT, without a driver, and for another CUDA
        (
            "print('import error')\nraise Exception('got error Could not find libnvinfer.so.11\\n  Search paths: /usr')",
            "got error Could not find libnvinfer.so.11 Search paths: /usr",
        ),
        ("raise RuntimeError('Found no NVIDIA driver\\non your system.')", "Found no NVIDIA driver on your system."),
        ("raise OSError('libtorchtrt.so: undefined symbol: _ZN3c10')", "libtorchtrt.so: undefined symbol: _ZN3c10"),
        ("import tensorrt_of_another_planet", "No module named 'tensorrt_of_another_planet'"),
        ("raise AssertionError", "AssertionError"),
    ],
)
def test_import_torch_tensorrt_says_in_one_line_why_it_cannot_be_loaded(
    ready: Path, capfd: pytest.CaptureFixture[str], code: str, reason: str
) -> None:
    write_package(ready, code)
    expected = rf"^torch_tensorrt cannot be loaded \({re.escape(reason)}\); pip install '[^\n]+'\.$"
    with pytest.raises(BackendUnavailableError, match=expected):
        import_torch_tensorrt()
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", ["torch_tensorrt", "torch_tensorrt_rtx"])
def test_import_torch_tensorrt_names_both_releases_when_it_is_for_another_pytorch(ready: Path, name: str) -> None:
    write_package(ready, "raise OSError('undefined symbol')")
    write_release(ready, name, "2.13.1")
    found = (
        rf"{name.replace('_', '-')} 2\.13\.1 is for PyTorch 2\.13 and here is PyTorch {re.escape(torch.__version__)}"
    )
    with pytest.raises(BackendUnavailableError, match=rf"^{found}; pip install '[^\n]+'\.$"):
        import_torch_tensorrt()


def test_import_torch_tensorrt_takes_every_patch_release_for_this_pytorch(ready: Path) -> None:
    major, minor = torch.__version__.split(".")[:2]
    write_package(ready, "answer = 42")
    write_release(ready, "torch_tensorrt", f"{major}.{minor}.7")
    try:
        assert import_torch_tensorrt().answer == 42
    finally:
        sys.modules.pop("torch_tensorrt", None)


def test_import_torch_tensorrt_loads_nothing_when_there_is_no_gpu(ready: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_package(ready, "raise RuntimeError('it was imported')")
    monkeypatch.undo()
    monkeypatch.setattr(torch_tensorrt, "cuda_driver_error", lambda: "no GPU")
    with pytest.raises(BackendUnavailableError, match=r"^[^\n]*here is no GPU; run this command there[^\n]*$"):
        import_torch_tensorrt()
    monkeypatch.setattr(torch_tensorrt, "cuda_driver_error", lambda: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(BackendUnavailableError, match=r"^[^\n]*this PyTorch has no CUDA support[^\n]*$"):
        import_torch_tensorrt()
