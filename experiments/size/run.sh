#!/usr/bin/env bash
# How report, sweep.csv and metrics.jsonl grow with the number of runs, jobs and bytes. Every figure of this folder's README.
set -euo pipefail
out=${OUT:-runs/size}
rm -rf "$out"
python "$(dirname "$0")/measure.py" all "$out"
