"""Throughput of the teachers' client against a loopback server that answers at most so many requests a second.

PYTHONPATH=. python benchmarks/dataset.py [--requests 2000] [--concurrency 64] [--limit 200] [--latency 0.1]

Three rows: a server without a limit (what client and server cost on this machine), one that answers 429 beyond `limit`
(how close the client comes to it by backing off), and the same with the limit told to the client beforehand. Prints a
table and one JSON line. Client and server share the machine's cores.
"""

import argparse
import json
import platform
import tempfile
import time
from pathlib import Path

from mmedexpert_jax.remote import Answers, Client, Endpoint, Request
from tests.mmedexpert.fake_teacher import answer
from tests.remote.loopback import Loopback, Misbehaviour

PROMPT = "A patient has a cough. What is the diagnosis?\nA. First\nB. Second\nC. Third\nUse intuitive reasoning: "
PROMPT += "recognise the pattern of the findings and what it typically means."


def measure(name: str, arguments: argparse.Namespace, wrong: Misbehaviour, per_minute: int) -> dict:
    with Loopback(answer, wrong, latency=arguments.latency) as server, tempfile.TemporaryDirectory() as folder:
        answers = Answers(Path(folder) / "answers.sqlite")
        end = Endpoint(
            server.url,
            "stand-in",
            key_env="",
            concurrency=arguments.concurrency,
            requests_per_minute=per_minute,
            max_attempts=20,
            retry_wait=0.1,
        )
        requests = [Request([{"role": "user", "content": f"Case {i}. {PROMPT}"}]) for i in range(arguments.requests)]
        wall, cpu = time.perf_counter(), time.process_time()
        replies = Client(end, answers).ask(requests)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        answered = sum(not reply.error for reply in replies)
        ideal = min(arguments.concurrency / arguments.latency, wrong.per_second or float("inf"))
        row = {
            "server": name,
            "answered": answered,
            "attempts": server.asked.total(),
            "requests/s": round(answered / wall, 1),
            "of the limit": f"{answered / wall / ideal:.0%}",
            "CPU ms/request, server included": round(1000 * cpu / answered, 2),
        }
        answers.close()
        return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--concurrency", type=int, default=64)
    parser.add_argument("--limit", type=float, default=200.0, help="answers a second that the server allows")
    parser.add_argument("--latency", type=float, default=0.1, help="seconds that an answer takes")
    arguments = parser.parse_args()
    limited = Misbehaviour(per_second=arguments.limit)
    rows = [
        measure("no limit", arguments, Misbehaviour(), 0),
        measure(f"429 beyond {arguments.limit:g}/s", arguments, limited, 0),
        measure(f"{arguments.limit:g}/s, client told", arguments, limited, int(arguments.limit * 60)),
    ]
    heads = list(rows[0])
    print("| " + " | ".join(heads) + " |\n|" + " --- |" * len(heads))
    for row in rows:
        print("| " + " | ".join(str(row[head]) for head in heads) + " |")
    print(json.dumps({"benchmark": "dataset", "python": platform.python_version(), "rows": rows}))


if __name__ == "__main__":
    main()
