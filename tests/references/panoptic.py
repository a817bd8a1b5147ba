"""PartPQ and PQ by brute force over pixels and sets, to compare with. Slow, and written from the definition
alone.
"""

from __future__ import annotations

from collections import Counter, defaultdict


def per_class(truth, guess, things, stuff, parts, void, *, plain=False):
    """{class: (sum of IoU, TP, FP, FN)} of one picture. `plain`: PQ, which knows no parts."""
    height, width = truth["semantic"].shape
    pixels = [(row, column) for row in range(height) for column in range(width)]
    classes = [*things, *stuff]
    has_parts = {known for known, own in parts.items() if len(own) > 1} if not plain else set()

    def segments(maps):
        found = defaultdict(set)
        for at in pixels:
            known, number = int(maps["semantic"][at]), int(maps["instance"][at])
            if known in classes and (known in stuff or number != -1):
                found[known, 0 if number == -1 else number].add(at)
        return found

    label = {at: int(truth["part"][at]) for at in pixels}
    label = {at: 0 if value == void else value for at, value in label.items()}
    empty = {at for at in pixels if int(truth["semantic"][at]) not in classes}
    crowd = defaultdict(set)
    for at in pixels:
        if int(truth["semantic"][at]) in things and int(truth["instance"][at]) == -1:
            crowd[int(truth["semantic"][at])].add(at)
    real = {}
    for (known, number), own in segments(truth).items():
        if known in has_parts and all(label[at] == 0 for at in own):
            crowd[known] |= own
        else:
            real[known, number] = own

    def iou_of_parts(known, own, other):
        judged = [at for at in pixels if at not in empty and at not in crowd[known]]
        judged = [at for at in judged if at not in own or label[at] != 0]
        pairs = Counter(
            (label[at] if at in own else 0, int(guess["part"][at]) if at in other else 0) for at in judged
        )
        labels = {value for pair in pairs for value in pair} - {void}
        each = []
        for value in labels:
            union = sum(count for pair, count in pairs.items() if value in pair)
            each.append(pairs[value, value] / union)
        return sum(each) / len(each)

    result = {}
    predicted = segments(guess)
    for known in classes:
        rights = [own for (of, _), own in real.items() if of == known]
        guesses = [other for (of, _), other in predicted.items() if of == known]
        total, matched = 0.0, []
        for own in rights:
            for other in guesses:
                iou = len(own & other) / len(own | (other - empty))
                if iou > 0.5:
                    matched.append(other)
                    total += iou_of_parts(known, own, other) if known in has_parts else iou
        wrong = [other for other in guesses if other not in matched]
        wrong = [other for other in wrong if len(other & (empty | crowd[known])) / len(other) <= 0.5]
        result[known] = (total, len(matched), len(wrong), len(rights) - len(matched))
    return result
