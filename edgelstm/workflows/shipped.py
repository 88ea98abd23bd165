"""``example:NAME/FILE``: files that come with the package, for commands and pipeline files that run as they stand."""

from __future__ import annotations

from pathlib import Path

from edgelstm.errors import EdgeLstmError

#: What a path begins with that means a file of examples/, in a checkout or in the installed package.
SHIPPED = "example:"
PACKAGE = Path(__file__).resolve().parents[1]
FOLDERS = (PACKAGE.parent / "examples", PACKAGE / "_examples")


def shipped(spec: str) -> str:
    """``example:NAME/FILE`` as the path of that file, what stands behind another colon kept; ``example:camera`` as the address of a
    camera that shows what is shipped; else ``spec``. Raises EdgeLstmError, with what there is, when it is not there.
    """
    if not spec.startswith(SHIPPED):
        return spec
    rest = spec.removeprefix(SHIPPED)
    if rest == "camera":  # a server of our own
        from edgelstm.workflows.example_camera import example_camera

        return example_camera(Path(shipped(f"{SHIPPED}moving_digits/test_stream.npz")))
    for folder in FOLDERS:
        if (folder / rest.partition(":")[0]).is_file():
            return str(folder / rest)
    names = {
        path.relative_to(folder).as_posix()
        for folder in FOLDERS
        for pattern in (
            "*/model.safetensors",
            "*/test_stream.npz",
            "serve/*.csv",
            "serve/*.safetensors",
            "serve/*.wav",
        )
        for path in folder.glob(pattern)
    }
    raise EdgeLstmError(
        f"{spec} is not there", expected=", ".join(sorted(names)) or "the examples of the released wheel"
    )
