"""The words of docs/results.md, each explained once: terms, methods, columns of its tables, pictures.

Called by `results_page.py`; a test checks that every column of the page is here. Holds no result.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from fednc.bench.compare.report import table_head

TERMS: Mapping[str, str] = {
    "setting": "what all methods of a row have in common: data, clients, and how examples are split over clients",
    "Dirichlet 0.1": "label skew: each class is split over the clients in random shares; the smaller the number, "
    "the more unequal",
    "rotated images": "each client turns its images by its own angle, so clients also differ within a class",
    "seed": "decides the initial weights, the split and the order of batches; every variant runs with every seed",
    "variant": "a method, or a method with some keys of the run file changed; each comparison lists its variants",
    "baseline": "the variant whose best round is the target of `rounds`: fedavg; with sessions, cosine-ce",
    "points": "percentage points",
    "pair": "one setting with one seed, run with two variants",
    "frame, vertices": "fixed class vectors at equal angles (a simplex), which every client trains towards",
    "class memory": "one vector per class on the server: the mean of that class's features over all clients",
    "read-out": "how a class is chosen from features when a model is tested; training is the same",
    "discriminant": "fednc's read-out: the nearest class memory, measured by how features vary within classes",
    "nearest mean": "a read-out: the nearest class memory by plain distance",
    "cosine head": "trained class vectors, compared with features by direction; `cosine-ce` is the usual one",
    "mean IoU (miou)": "mean over classes of the pixels rightly given a class over those that have it or "
    "are given it",
    "CeCo": "a term of the loss that draws the mean feature of each class in a batch to a fixed frame of its own",
    "projection": "the last trained layer before the class vectors",
    "+memory, +discriminant": "a variant with that read-out",
    "+control": "a variant with the control variates of scaffold",
    "+own-control": "a variant with control variates that each client derives, without bytes",
    "+fade": "a variant whose class prior fades to nothing over the rounds",
    "+momentum": "a variant whose mean change of the model gets momentum at the server",
    "+backbone, +backbone-16": "a variant whose class memory is of the features before the projection; with "
    "second moments of 16 bits",
    "+fitted, -drawn": "a variant whose projection is computed from the class memory after each round, or stays "
    "as it was drawn",
    "-wide": "a variant whose projection is as wide as the features before it",
    "+nio, +nio-cheap": "a variant with initial scales learnt by all clients together, or by each client alone",
    "controls": "the memory replaced by other vectors: the vertices (-vertex), one client's own means (-own), the "
    "memory of another class (-shuffled), an old memory (-stale), random vectors (-random)",
    "anchor": "a term of the loss that pulls features towards the class memory",
    "rehearsal": "a term of the loss that trains the classifier on the class memory of all classes seen so far",
    "warm-up": "the first rounds, in which the terms that use the memory are off",
    "dot regression": "a loss that regresses the cosine between a feature and its vertex to 1",
    "virtual classes": "turned examples learnt as extra classes, so that features can tell more classes apart",
    "spread memory": "a class memory rehearsed as several features drawn around it instead of one",
    "initial scales": "one factor per weight tensor, learnt before round 1 so that the clients' gradients agree",
    "natural client": "a hospital, a domain or a person, with training and test data of its own",
    "pooled, alone": "as variants: one model of all training data at one place; a model for each client",
    "session": "a later stage of a run in which new classes arrive, with few examples, at few clients",
}

METHODS: Mapping[str, str] = {
    "fedavg": "plain federated averaging with an ordinary trained classifier",
    "fedprox": "fedavg with a pull of each client's weights towards the global weights",
    "fedavgm": "fedavg whose mean change of the model gets momentum at the server",
    "fedadagrad, fedadam, fedyogi": "fedavg whose mean change of the model is a step of Adagrad, Adam or Yogi at "
    "the server",
    "feddyn": "fedavg with a linear and a proximal term for each client, which move its optimum to the global one",
    "fednova": "fedavg of the change per local step, so that clients with many steps do not weigh more",
    "scaffnew": "scaffold's correction without its bytes: clients derive it from the models that they are sent",
    "scaffold": "fedavg with gradients corrected by control variates; doubles the bytes",
    "moon": "fedavg with a contrast between the features of the global and the client's previous model",
    "fedntd": "fedavg with distillation of the global model's scores for all classes but the label",
    "fedlc": "fedavg with a loss calibrated by each client's class frequencies",
    "fedetf": "a frozen frame with a loss balanced by each client's class frequencies, and a trained scale",
    "fednc": "this project's method: frozen frame, balanced loss, class memory, discriminant read-out",
}

COLUMNS: Mapping[str, str] = {
    "lr": "learning rate, the best one on the validation data",
    "last 5": "test accuracy in per cent, mean of the last five evaluations; with sessions, mean over sessions",
    "best": "test accuracy in per cent of the best round",
    "rounds": "first evaluated round that has the baseline's best accuracy with the same seed; mean over the "
    "seeds that reach it",
    "drift": "mean squared distance of the clients' own class means from their common mean, in the last round",
    "NC1": "spread of features within classes over the spread between classes; 0: all of a class in one point",
    "s per run": "seconds of one run; training that several variants share is divided by their number",
    "federation": "whose clients have data of their own",
    "at one place": "one model of all training data",
    "best published": "the best figure that others report for federated training on the same test data",
    "published: pooled": "what others report on the same test data, in per cent",
    "published: mean": "the same, as the mean over the clients",
    "client mean": "mean of the natural clients' test accuracy, as a share",
    "worst of clients": "the lowest test accuracy of a natural client, as a share",
    "mean": "accuracy as a share, mean over the sessions; in tables of clients: in per cent, over the clients",
    "drop": "accuracy of the first session minus that of the last",
    "novel": "accuracy at the end on all classes that arrived after the first session",
    "miou_head, miou_common, miou_tail": "mean IoU, as a share, of the frequent, the less frequent and the rare "
    "classes, in the last evaluated round",
    "pixel_accuracy": "share of pixels with the right class in the last evaluated round",
    "accuracy_so3": "share of clouds with the right class, each turned by a random rotation, in the last "
    "evaluated round",
    "invariance_error": "how much a rotation of a cloud changes its features, relative to their size; "
    "0: not at all",
    "pq, pq_things, pq_stuff, sq, rq": "panoptic quality, of all classes, of objects and of regions; its factors: "
    "segmentation quality of what was found, and recognition quality",
    "part_pq, part_pq_parts, part_pq_no_parts": "PartPQ: panoptic quality that counts parts; of classes with and "
    "without parts",
    "part_miou": "mean over parts of the IoU of pixels; a part of a wrong whole is wrong",
    "pwq_gm": "geometric mean of `part_miou` and `pq`",
    "ssim": "structural similarity of the result and the true picture; 1: the same",
    "fd_rand": "Frechet distance between results and true pictures in features of a frozen random network; "
    "compare it only within this table",
    "colour_error, colour_error_own": "distance of the result's median colours to those of the reference, by "
    "region; the same for the true picture, which does not know the reference",
    "nc2_std": "standard deviation of the cosines between the centres of the classes' test features, relative to "
    "the mean of all centres, in the last evaluated round; 0: equal angles",
    "session_acc": "accuracy after each session, over all classes so far",
    "gradient cosine": "mean cosine between the clients' gradients before round 1: before / after learning scales",
    "gradient loss": "training loss before round 1: before / after learning scales",
    "gradient norm": "mean length of the clients' gradients before round 1: before / after learning scales",
    "round 6": "accuracy after round 6, as a share",
    "best other": "the other method with the highest accuracy in that setting",
    "gain (points)": "accuracy of fednc minus that of the best other method, mean ± standard deviation over seeds",
    "ratio": "fednc's rounds over the baseline's",
    "gain in %": "of several metrics in the last evaluated round: mean change relative to the variants in `over`, "
    "positive is better; mean ± standard deviation over seeds. `all`: over all metrics; then each metric alone",
    "in": "the setting of the gain",
    "over": "the variants that the gain is compared with, one for each metric",
    "part": "what is added or replaced",
    "best of": "the variants that the part is compared with; in each setting the best one counts",
    "keys": "what the variant sets in the run file ([docs/config.md](config.md)); all other keys are the defaults",
}

SPEED: Mapping[str, str] = {
    "engine": "`fednc`: our link; `raw`: gRPC calls without anything else; `flower`: stock Flower",
    "params": "parameters of the model, float32",
    "clients": "clients that take part",
    "client_processes": "processes that these clients share",
    "connections": "connections that the server holds",
    "codec": "how updates are encoded",
    "tls": "`off`, or `mtls`: certificates on both sides",
    "checkpoint": "whether the timed part writes a checkpoint",
    "warmup": "rounds before those that are timed",
    "round_s": "seconds per round, median",
    "bytes_down, bytes_up": "bytes per round from and to the server",
    "server_peak_rss_mib, client_peak_rss_mib": "largest memory of the server and of a client process, MiB",
    "cpu_s": "processor seconds per round, server and clients together",
    "speedup": "seconds per round over those of `fednc`",
    "connect_s": "seconds until all clients are connected",
    "kib_per_idle_client": "memory of the server per waiting client, KiB",
    "total_s": "seconds from start to end",
    "files": "open files that the system allows a process",
    "moved_gb_s, copy_gb_s, ratio": "memory traffic of aggregating and of copying, GB/s, and their ratio",
    "payload_gb_s, checked_payload_gb_s": "updates aggregated per second, without and with all checks, GB/s",
    "threads": "threads used",
    "update_mib, last_level_cache_mib": "size of an update and of the processor's last cache, MiB",
    "model, norm, width, device, precision": "network, its normalisation and width, where and how it is computed",
    "images, batch": "images per epoch and per step",
    "fednc_images_s, fedavg_images_s": "images per second of our trainer with each method",
    "plain_images_s, replayed_images_s": "the same of a plain PyTorch loop, and of one replayed as CUDA graphs",
    "fednc_overhead, fedavg_overhead": "time over that of the faster plain loop, minus 1",
    "server": "`bare`: a FastAPI handler that calls PyTorch; the others: how `fednc serve` is asked",
    "requests": "requests answered in all",
    "callers": "requests at once; each caller asks again when it is answered",
    "requests_per_s, to_bare": "requests answered per second, and that over the bare FastAPI handler's",
    "cpu_ms": "processor milliseconds of the server per request",
    "p50_ms, p99_ms": "milliseconds within which half and 99 % of the requests were answered",
    "plain_tflop_s, product_tflop_s": "arithmetic of the plain loop and of a large matrix product, "
    "TFLOP/s; `ratio` is the first over the second",
}


PICTURES: Mapping[str, str] = {
    "accuracy": "test accuracy per round: mean over the seeds, in a band from the lowest to the highest; the "
    "last value of a line far from all others stands above the picture",
    "sessions": "accuracy after each session, and the mean cosine of the class memory to its vertices",
    "rounds": "first evaluated round with the baseline's best accuracy, with a dot per seed; "
    "no picture if all bars are equal",
    "clients": "test accuracy of each natural client, a dot each, and their mean",
    "geometry": "per round or session: drift, and how far features are from collapse (NC1 to NC4; 0 is collapse)",
    "alignment": "cosine of each class mean with each class vector at the end; collapse is a diagonal of ones",
    "claims": "gain in each setting: a dot per seed and a stroke for their mean; grey: too small to count",
    "initialisation": "cosine and length of the clients' gradients before and after learning initial scales",
}


def explained(kind: str, terms: Mapping[str, str]) -> Iterator[str]:
    """A table of words and what they mean."""
    yield from table_head((kind, "meaning"))
    yield from (f"| {term} | {meaning} |" for term, meaning in terms.items())
