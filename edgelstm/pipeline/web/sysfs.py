"""Power and temperature of the board, as Linux says them in /sys; nothing where it says nothing."""

from __future__ import annotations

from pathlib import Path

SYS = Path("/sys")


def temperatures(root: Path = SYS) -> dict[str, float]:
    """Degrees Celsius by thermal zone. Zones that are switched off are left out."""
    found: dict[str, float] = {}
    for zone in sorted(root.glob("class/thermal/thermal_zone*")):
        name, value = _text(zone / "type"), _number(zone / "temp")
        if name and value is not None and -273e3 < value < 1e6:
            found.setdefault(name.removesuffix("-thermal"), value / 1000)
    return found


def powers(root: Path = SYS) -> dict[str, float]:
    """Watts by rail, of the INA3221 monitors that a Jetson has (millivolts times milliamperes of each channel)."""
    found: dict[str, float] = {}
    for folder in sorted(root.glob("class/hwmon/hwmon*")):
        if _text(folder / "name") != "ina3221":
            continue
        for label in sorted(folder.glob("in*_label")):
            channel = label.name[2:].removesuffix("_label")
            name = _text(label)
            volts, amperes = _number(folder / f"in{channel}_input"), _number(folder / f"curr{channel}_input")
            if name and name != "NC" and volts is not None and amperes is not None:
                found.setdefault(name, volts * amperes / 1e6)
    return found


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:  # a zone that is asleep answers with an error
        return None


def _number(path: Path) -> float | None:
    text = _text(path)
    try:
        return None if text is None else float(text)
    except ValueError:
        return None
