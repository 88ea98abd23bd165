"""What a page of docs/ says, done: its files are written, its commands run in their order, what it says that they print is seen."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def environment(folder: Path, package: Path) -> dict[str, str]:
    """In which `edgelstm` is the package in ``package`` and `python` this one; ``folder`` gets the two commands."""
    commands = folder / ".commands"
    commands.mkdir(exist_ok=True)
    for name, arguments in (("edgelstm", "-m edgelstm"), ("python", "")):
        command = commands / name
        command.write_text(f'#!/bin/sh\nexec "{sys.executable}" {arguments} "$@"\n')
        command.chmod(0o755)
    path = f"{commands}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "PYTHONPATH": str(package), "COLUMNS": "120"}


def run_line(command_line: str, folder: Path, environment: dict[str, str], seen: str = "") -> None:
    """It ends well and prints ``seen``, in which ``...`` stands for anything."""
    done = subprocess.run(
        command_line, shell=True, cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, f"{command_line}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
    wanted = ".*".join(map(re.escape, seen.strip().split("...")))
    assert re.search(wanted, done.stdout, re.DOTALL), f"{command_line}\n{done.stdout[-2000:]}"


def follow(page: Path, folder: Path, environment: dict[str, str]) -> int:
    """Do what the page says: each block of code that begins with a file's name is that file. Gives how many commands it had."""
    count = 0
    for language, block in BLOCK.findall(page.read_text("utf-8")):
        if named := re.match(r"(?:#|//) (\S+\.\w+)\n", block):
            (folder / named[1]).write_text(block, "utf-8")
        if language != "console":
            continue
        for said in re.findall(r"^\$ .*?(?=^\$ |\Z)", block.replace("\\\n", ""), re.MULTILINE | re.DOTALL):
            command_line, _, seen = said[2:].partition("\n")
            run_line(command_line, folder, environment, seen)
            count += 1
    return count


def plain_lines(page: Path) -> list[str]:
    """The commands of edgelstm in blocks without a language, without their comments."""
    lines = [
        line.partition("  #")[0].strip()
        for language, block in BLOCK.findall(page.read_text("utf-8"))
        if not language
        for line in block.replace("\\\n", "").splitlines()
    ]
    return [line for line in lines if line.startswith("edgelstm ")]
