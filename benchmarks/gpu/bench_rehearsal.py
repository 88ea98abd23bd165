"""Stands in for the benchmark program of plugins/bench/ where there is no GPU: knows its arguments, prints lines like its."""

import json
import sys

KNOWN = {"--checks-only": 0, "--times-only": 0, "--every": 1, "--repeats": 1}

arguments = sys.argv[1:]
while arguments:
    count = KNOWN.get(arguments.pop(0))
    if count is None:
        print(json.dumps({"error": "unknown argument"}))
        sys.exit(2)
    del arguments[:count]
print(json.dumps({"device": "no GPU, a rehearsal"}))
if "--times-only" not in sys.argv:
    print(json.dumps({"checks": 1080, "checks_failed": 0, "worst_of_allowed": 0.5}))
if "--checks-only" not in sys.argv:
    for streams in (1, 8, 110):
        rate = {"memcpy_gb_per_s": 2000.0, "copy_kernel_gb_per_s": 2100.0, "of_best_copy": 0.9}
        time = {"streams": streams, "bytes": streams * 4_700_000, "seconds": streams * 2.5e-6, **rate}
        print(
            json.dumps(
                {"case": "fp16 linear, c fp32", "channels": 64, "spatial": 4096, "gb_per_s": 1880.0, **time}
            )
        )
