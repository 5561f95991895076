#!/usr/bin/env python3
"""Plants one bug at a time and shows that the named test turns red. Needs Go; nothing is written but scratch.

    tests/planted.py [WORD]      # only bugs whose description has the word

A bug that its test does not notice, or one whose text is no longer in the source, fails the run.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# what is wrong, file, text, in its place, package, test
BUGS = [
    ("the hash of a plugin is not compared", "plugins/host/process_executable.go",
     "got != strings.ToLower(checksum)", "false && got != strings.ToLower(checksum)", "tests/process", "TestTampered"),
    ("the verified copy is not sealed", "plugins/host/process_executable.go",
     "if err := seal(to, seals); err != nil {", "if err := error(nil); err != nil {\n\t_ = seals", "plugins/host", "TestVerifiedCopyIsSealed"),
    ("what the process describes is not compared with its manifest", "plugins/host/service.go",
     'difference != "" {', 'false && difference != "" {', "tests/process", "TestLyingPlugin"),
    ("a call over the lane forgets its deadline", "plugins/host/attention_start.go",
     "|| s.err != nil || s.ctx.Err() != nil", "|| s.err != nil", "tests/process", "TestHostileLane/hang"),
    ("a reply to another call is taken", "plugins/lane/caller.go",
     "if h.id != id || h.kind", "if h.kind", "plugins/lane", "TestOutOfTurn"),
    ("the next call goes out before the cancelled one was answered", "plugins/lane/caller.go",
     "c.broken || !c.greeted() || !c.settled()", "c.broken || !c.greeted()", "plugins/lane", "TestCancelledCall"),
    ("a reply over the lane may be of any size", "plugins/lane/caller.go",
     "len(c.reply)+len(body) > c.limit ||", "", "plugins/lane", "TestTooLarge"),
    ("memory of a cancelled call is given back while the plugin writes to it", "plugins/host/call.go",
     "if !c.open {", "if true {", "plugins/roundtrip", "TestStubborn"),
    ("outputs that are not numbers are handed on", "plugins/host/attention.go",
     "if err := x.checkNumbers(); err != nil {", "if err := error(nil); err != nil {", "tests/process", "TestHostilePlugins/one_NaN_output"),
    ("columns of a mask may lie outside of the grid", "core/mask.go",
     "if c <= previous || int(c) >= limit {", "if c <= previous {", "plugins/wire", "FuzzBlockMask"),
    ("row pointers of a mask may lie outside of its columns", "core/mask.go",
     "if low < 0 || high < low || high > int64(len(m.Columns)) {", "if high < low {", "plugins/wire", "TestHostileAttention"),
    ("a mask may be larger than its memory", "plugins/wire/mask.go",
     "|| MaskSize(rows, columns) > int64(len(memory)) {", "{", "plugins/wire", "FuzzBlockMask"),
    ("the network is open", "plugins/confine/filter_linux.go",
     "if !p.Network {", "if false {", "tests/process", "TestEscapes"),
    ("new processes are allowed", "plugins/confine/filter_linux.go",
     "if !p.Processes {", "if false {", "tests/process", "TestHostilePlugins/fork_bomb"),
    ("files are not confined", "plugins/confine/enter_linux.go",
     "noNewPrivileges, confineFiles, ", "noNewPrivileges, ", "tests/process", "TestEscapes"),
    ("private memory has no limit", "plugins/confine/enter_linux.go",
     "{unix.RLIMIT_DATA, p.Memory, p.Memory == 0}", "{unix.RLIMIT_DATA, p.Memory, true}", "tests/process", "TestEscapes"),
    ("helpers of a dead plugin live on", "plugins/host/process_runner.go",
     "_ = unix.Kill(-pid, unix.SIGKILL)", "", "tests/process", "TestHelpersEndWithThePlugin"),
    ("a plugin that only crashes is always started again", "plugins/host/process_breaker.go",
     "if len(b.crashes) < breakerCrashes {", "if true {", "plugins/host", "TestBreaker"),
    ("the plugin names any socket", "plugins/host/process_runner.go",
     'if network != "unix" || filepath.Dir(filepath.Clean(address)) != filepath.Clean(c.sockets) {',
     'if network != "unix" || filepath.Clean(address) == "" {',
     "plugins/host", "FuzzHandshake"),
    ("tensors of a file may overlap", "core/checkpoint/header.go",
     "case e.begin < next:", "case false:", "core/checkpoint", "FuzzHeader"),
]  # fmt: skip


def planted(file: str, text: str, instead: str, package: str, test: str) -> str:
    """Run the test with the bug. Return why it is not red, "" if it is."""
    source = (ROOT / file).read_text()
    if source.count(text) != 1:
        return f"{file} has the text {source.count(text)} times"
    with tempfile.TemporaryDirectory() as scratch:
        changed, overlay = Path(scratch, Path(file).name), Path(scratch, "overlay.json")
        changed.write_text(source.replace(text, instead))
        overlay.write_text(json.dumps({"Replace": {str(ROOT / file): str(changed)}}))
        pattern = "/".join(f"^{part}$" for part in test.split("/"))
        command = ["go", "test", "-count=1", "-timeout=40s", "-vet=off", f"-overlay={overlay}", f"-run={pattern}", f"./{package}"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "GOFLAGS": "-trimpath -buildvcs=false"})
    said = done.stdout + done.stderr
    if "[build failed]" in said or "[setup failed]" in said:
        return f"does not build:\n{said}"
    red = f"--- FAIL: {test.split('/')[0]}" in said or "panic: test timed out" in said or "unexpected fault address" in said or "SIGSEGV" in said
    return "" if done.returncode != 0 and red else f"the test is green:\n{said}"


def main() -> int:
    missed = 0
    for what, *bug in BUGS:
        if not all(word in what for word in sys.argv[1:]):
            continue
        problem = planted(*bug)
        missed += bool(problem)
        print(f"{'MISSED' if problem else 'found'}  {what}: {bug[-2]} {bug[-1]}{' - ' + problem if problem else ''}", flush=True)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
