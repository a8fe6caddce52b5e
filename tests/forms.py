"""Each test of views runs by torch's form and by the native kernel, where that can be compiled."""

import pytest

from lookalike.views import compiling, native

BOTH = ("test_views", "test_deep_views", "test_further_views", "test_augmentation")
# In the names of tests of what both have in common: the graph, draws, boxes.
ALIKE = (
    *("graph", "boxes", "draws", "drew", "law", "crop_resize", "test_time", "keys", "refuse"),
    *("number", "often_as", "factors_and", "mirrors", "in_range", "scale", "shifts_are"),
    *("a_shift_is",),
)


@pytest.fixture(scope="session")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> native.Kernel:
    """The library that was installed, else one compiled for the tests (which is faster unoptimised,
    and has the same bits); why there is none where there is none.
    """
    installed = native._beside()
    if installed.library is not None:
        return installed
    try:
        return native.loaded(
            compiling.build(tmp_path_factory.mktemp("native"), "-O1", compiling.PLAIN)
        )
    except OSError as error:
        return native.Kernel(None, str(error))


@pytest.fixture
def by_native(kernel: native.Kernel, monkeypatch: pytest.MonkeyPatch) -> native.Kernel:
    """Views by the kernel; a test that asks for it is skipped where there is none."""
    if kernel.library is None:
        pytest.skip(f"no native kernel: {kernel.why}")
    monkeypatch.delenv(native.SWITCH, raising=False)
    monkeypatch.setattr(native, "_beside", lambda: kernel)
    return kernel


@pytest.fixture(autouse=True)
def made_by(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The form that makes views in a test; where none is named, what was installed."""
    named: str = getattr(request, "param", "")
    if named == "native":
        request.getfixturevalue("by_native")
    elif named:
        monkeypatch.setenv(native.SWITCH, "0")
    return named


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    name = metafunc.function.__name__
    if metafunc.module.__name__ in BOTH and not any(word in name for word in ALIKE):
        metafunc.parametrize("made_by", ["torch", "native"], indirect=True)
