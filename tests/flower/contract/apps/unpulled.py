"""Replies that nobody pulls, some of them in threads, then a query; all within a lifespan."""

import threading
import time

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from common import both, finish, part

client = ClientApp()
server = ServerApp()
told: list[str] = []


@client.query()
def ask(message: Message, context: Context) -> Message:
    arrays = ArrayRecord([np.full(250_000, part(context), np.float64)])
    answer = MetricRecord({"n": message.content["n"]["n"] * 10 + part(context)})
    return Message(RecordDict({"arrays": arrays, "n": answer}), reply_to=message)


@server.lifespan()
def lifespan(context: Context):
    told.append("begins")
    yield
    told.append("ends")


def question(number: int, node: int) -> Message:
    return Message(RecordDict({"n": MetricRecord({"n": number}), "c": ConfigRecord()}), node, "query")


@server.main()
def main(grid: Grid, context: Context) -> None:
    nodes = both(grid)
    for number in range(5):
        grid.push_messages([question(number, node) for node in nodes])
    answers: dict[int, list] = {}

    def in_thread(number: int) -> None:
        replies = grid.send_and_receive([question(number, node) for node in nodes])
        answers[number] = sorted(reply.content["n"]["n"] for reply in replies)

    threads = [threading.Thread(target=in_thread, args=[number]) for number in (7, 8, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    waiting, found = set(grid.push_messages([question(3, node) for node in nodes])), []
    while waiting:  # on stock Flower, pulling a reply twice is an error
        for reply in grid.pull_messages(waiting):
            found.append(reply)
            waiting.discard(reply.metadata.reply_to_message_id)
        time.sleep(0.2)
    finish(context, [told, sorted(answers.items()), sorted(reply.content["n"]["n"] for reply in found)])
