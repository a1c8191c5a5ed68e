#!/usr/bin/env python3
"""Make the routing trace of this directory from a text, check it, or print its statistics.

    make-trace.py [TEXT]            write trace_topk.npy and trace_weights.npy
    make-trace.py --check [TEXT]    compare with the files; writes nothing
    make-trace.py --stats           what the files hold; needs no text

Exit status: 0 done (--check: the same, bit for bit), 1 different or damaged, 2 usage, 77 TEXT is
missing or another text. README.md has the recipe.
"""

import argparse
import decimal
import hashlib
import itertools
import os
import re
import struct
import sys

TEXT = "/usr/share/common-licenses/GPL-3"
# Of the first T words, each and a newline.
WORDS_SHA256 = "bd6a40f3e70c293d73b7fb93de55a6f5c56462718d3564629bc3ef6e54c8cd62"
T, E, K, D = 4096, 256, 8, 64  # tokens, experts, choices of a token, embedding dimensions
SELF, PREVIOUS = 2, 1  # parts of a word and of the one before it in a token's embedding
SCALE = 1 << 18  # integer score per unit of the softmax's argument


def words(text):
    """Lower-case ASCII words without URLs, which differ between copies of the text."""
    return re.findall(r"[a-z]+", re.sub(r"https?://\S*", " ", text.lower()))


def vector(label, n):
    """n odd integers from -255 to 255: 2 b - 255 for the bytes b of a SHA-256 counter stream."""
    blocks = (hashlib.sha256(b"%s/%d" % (label, i)).digest() for i in range((n + 31) // 32))
    return [2 * b - 255 for b in b"".join(blocks)[:n]]


def route(tokens):
    """The K expert ids of each token, by descending score, and their weights."""
    # Scores are integers, and decimal rounds exp() correctly, so that no libm has a say.
    context = decimal.Context(prec=30, rounding=decimal.ROUND_HALF_EVEN)
    flat = vector(b"moeep-trace/gate", E * D)
    gate = [flat[e * D : (e + 1) * D] for e in range(E)]
    parts = {}  # word: its embedding's score for each expert; the gate is linear
    for word in set(tokens):
        x = vector(b"moeep-trace/word/" + word.encode("ascii"), D)
        parts[word] = [sum(a * b for a, b in zip(x, row)) for row in gate]
    nothing = [0] * E  # before the first word
    for previous, word in zip([None] + tokens[:-1], tokens):
        before = parts.get(previous, nothing)
        scores = [SELF * a + PREVIOUS * b for a, b in zip(parts[word], before)]
        top = sorted(range(E), key=lambda e: (-scores[e], e))[:K]
        # The softmax over all E, divided by its sum over the top K: the other terms cancel.
        exps = [context.exp(context.divide(scores[e] - scores[top[0]], SCALE)) for e in top]
        total = decimal.Decimal(0)
        for x in exps:
            total = context.add(total, x)
        yield top, [float(context.divide(x, total)) for x in exps]


def npy(descr, code, rows):
    """A T x K array as the bytes of a .npy file, version 1.0."""
    head = "{'descr': '%s', 'fortran_order': False, 'shape': (%d, %d), }" % (descr, T, K)
    head += " " * (-(10 + len(head) + 1) % 64) + "\n"
    flat = list(itertools.chain.from_iterable(rows))
    return (b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head.encode("ascii")
            + struct.pack("<%d%s" % (len(flat), code), *flat))


def gini(load):
    n, total = len(load), sum(load)
    return sum((2 * i - n + 1) * x for i, x in enumerate(sorted(load))) / (n * total)


def stats(directory):
    """Print statistics; False if the files are not what the README says."""
    with open(os.path.join(directory, "trace_topk.npy"), "rb") as f:
        ids = f.read()
    with open(os.path.join(directory, "trace_weights.npy"), "rb") as f:
        weights = f.read()
    count = T * K
    if len(ids) != 128 + 4 * count or len(weights) != 128 + 4 * count:
        return False
    ids = struct.unpack("<%di" % count, ids[128:])
    weights = struct.unpack("<%df" % count, weights[128:])
    rows = [ids[i : i + K] for i in range(0, count, K)]
    sums = [sum(weights[i : i + K]) for i in range(0, count, K)]
    if any(len(set(r)) != K or min(r) < 0 or max(r) >= E for r in rows):
        return False
    if min(weights) <= 0 or any(abs(s - 1) > 1e-6 for s in sums):
        return False
    load = [0] * E
    for e in ids:
        load[e] += 1
    print("rows: %d, of them distinct: %d" % (T, len(set(rows))))
    print("expert load: min %d, mean %d, max %d, max/mean %.2f, Gini %.3f"
          % (min(load), count // E, max(load), max(load) * E / count, gini(load)))
    first, last = weights[::K], weights[K - 1 :: K]
    print("mean weight: first choice %.3f, last choice %.3f" % (sum(first) / T, sum(last) / T))
    for ranks in (8, 16, 32):
        each = E // ranks
        choices = [sum(load[r * each : (r + 1) * each]) for r in range(ranks)]
        sent = [0] * ranks  # a token once to each rank that it has a choice on
        for row in rows:
            for r in {e // each for e in row}:
                sent[r] += 1
        for what, x in (("choices", choices), ("tokens", sent)):
            print("%d ranks, %s: mean %.1f, max/mean %.3f, Gini %.3f: %s"
                  % (ranks, what, sum(x) / ranks, max(x) * ranks / sum(x), gini(x),
                     " ".join(map(str, x))))
        print("%d ranks, ranks of a token: mean %.3f" % (ranks, sum(sent) / T))
    return True


def main():
    here = os.path.dirname(os.path.abspath(__file__))
    parser = argparse.ArgumentParser(description="Make or check the routing trace.")
    parser.add_argument("text", nargs="?", default=TEXT, metavar="TEXT", help="default: " + TEXT)
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--check", action="store_true", help="compare with the files, write nothing")
    mode.add_argument("--stats", action="store_true", help="print statistics of the files")
    parser.add_argument("--dir", default=here, help="where the files are; default: by the script")
    args = parser.parse_args()

    if args.stats:
        return 0 if stats(args.dir) else 1
    try:
        with open(args.text, encoding="utf-8", errors="replace") as f:
            tokens = words(f.read())[:T]
    except OSError as error:
        print("make-trace.py: %s" % error, file=sys.stderr)
        return 77
    digest = hashlib.sha256("".join(w + "\n" for w in tokens).encode("ascii")).hexdigest()
    if digest != WORDS_SHA256:
        print("make-trace.py: %s: another text: its words' SHA-256 is %s" % (args.text, digest),
              file=sys.stderr)
        return 77
    ids, weights = zip(*route(tokens))
    files = {"trace_topk.npy": npy("<i4", "i", ids), "trace_weights.npy": npy("<f4", "f", weights)}
    status = 0
    for name, data in files.items():
        path = os.path.join(args.dir, name)
        if not args.check:
            with open(path, "wb") as f:
                f.write(data)
            continue
        try:
            with open(path, "rb") as f:
                same = f.read() == data
        except OSError:
            same = False
        print("%s: %s" % (name, "same" if same else "DIFFERENT"))
        status |= not same
    return int(status)


if __name__ == "__main__":
    sys.exit(main())
