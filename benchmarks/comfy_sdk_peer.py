"""Runs the benchmark's job through comfy-sdk. Runs in an environment of its own, spoken to over stdin and stdout.

A line `one COLOR` runs one job and is answered with its milliseconds; `many JOBS COLOR` runs that many at once and is
answered with jobs a second. An answer that is not a number is an error.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from pathlib import Path

from comfy_sdk import AsyncComfy


async def run(client: AsyncComfy, graph: dict, color: int) -> None:
    graph = json.loads(json.dumps(graph))
    graph["1"]["inputs"]["value"] = color
    graph["5"]["inputs"]["value"] = f"bench{color // 1000}/x"
    job = await client.run(client.workflows.from_json(graph))
    assert len(await job.get_outputs("4")[0].to_bytes()) > 0


async def main(graph: dict) -> None:
    async with AsyncComfy() as client:
        print("ready", flush=True)
        while line := await asyncio.to_thread(sys.stdin.readline):
            command, *numbers = line.split()
            start = time.perf_counter()
            try:
                if command == "one":
                    await run(client, graph, int(numbers[0]))
                    print((time.perf_counter() - start) * 1000, flush=True)
                else:
                    jobs, first = map(int, numbers)
                    await asyncio.gather(*(run(client, graph, first + n) for n in range(jobs)))
                    print(jobs / (time.perf_counter() - start), flush=True)
            except Exception as error:
                print(f"{type(error).__name__}: {error}".replace("\n", " ")[:300], flush=True)


asyncio.run(main(json.loads(Path(sys.argv[1]).read_text())))
