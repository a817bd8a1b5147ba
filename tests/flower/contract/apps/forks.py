"""A ServerApp that forks, spawns, loads data with workers, sets signal handlers and holds the interpreter lock."""

import asyncio
import multiprocessing
import signal
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor

import torch
from flwr.app import Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from torch.utils.data import DataLoader, TensorDataset

from common import both, finish

client = ClientApp()
server = ServerApp()


@client.query()
def ask(message: Message, context: Context) -> Message:
    return Message(RecordDict({"n": MetricRecord({"n": message.content["n"]["n"] + 1})}), reply_to=message)


def square(number: int) -> int:
    return number * number


def loaded(workers: int) -> float:
    data = TensorDataset(torch.arange(64, dtype=torch.float32))
    return float(sum(batch.sum() for (batch,) in DataLoader(data, batch_size=8, num_workers=workers)))


@server.main()
def main(grid: Grid, context: Context) -> None:
    def ask(number: int) -> list[int]:
        content = RecordDict({"n": MetricRecord({"n": number})})
        replies = grid.send_and_receive([Message(content, node, "query") for node in both(grid)])
        return [reply.content["n"]["n"] for reply in replies]

    answers: list = [ask(1), loaded(2), loaded(0)]
    pool = multiprocessing.Pool(2)
    answers.append(pool.map(square, range(8)))
    pool.close()  # on stock Flower a worker that is terminated ends the run
    pool.join()
    with ProcessPoolExecutor(2) as executor:
        answers.append(list(executor.map(square, range(8))))
    answers.append(ask(2))
    heard: list[int] = []
    signal.signal(signal.SIGUSR1, lambda number, _: heard.append(int(number)))
    signal.raise_signal(signal.SIGUSR1)
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    answers += [heard, asyncio.get_event_loop().run_until_complete(asyncio.sleep(0, "slept"))]
    answers.append(subprocess.run([sys.executable, "-c", "print(6)"], capture_output=True, text=True).stdout)
    answers.append(ask(3))
    finish(context, answers)
