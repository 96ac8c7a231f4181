"""The loops of mmcv 2 and of the Soft-NMS authors, one float32 at a time: what compat='mmcv' and 'paper' must equal."""

from __future__ import annotations

import math

import numpy as np

f = np.float32


def exp(x):
    """In double, rounded once, as the authors' np.exp is; mmcv's expf differs from it in one of some hundred arguments."""
    return f(math.exp(float(x))) if not math.isnan(x) else x


def mmcv_weight(a, b, threshold, sigma, method):
    # max and min give the first number, if either is NaN, as those of C++ do.
    w = max(f(0), min(a[2], b[2]) - max(a[0], b[0]))
    h = max(f(0), min(a[3], b[3]) - max(a[1], b[1]))
    inter = w * h
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    iou = inter / (areas[0] + areas[1] - inter)
    if method == "gaussian":
        return exp(-(iou * iou) / sigma)
    return (f(0) if method == "hard" else f(1) - iou) if iou >= threshold else f(1)


def paper_weight(a, b, threshold, sigma, method):
    def larger(x, y):  # the authors' own: the second number, if either is NaN
        if x >= y:
            return x
        return y

    def smaller(x, y):
        if x <= y:
            return x
        return y

    w = smaller(a[2], b[2]) - larger(a[0], b[0]) + f(1)
    if not w > 0:
        return f(1)
    h = smaller(a[3], b[3]) - larger(a[1], b[1]) + f(1)
    if not h > 0:
        return f(1)
    areas = [(box[2] - box[0] + f(1)) * (box[3] - box[1] + f(1)) for box in (a, b)]
    iou = w * h / (areas[0] + areas[1] - w * h)
    if method == "gaussian":
        return exp(-(iou * iou) / sigma)
    return (f(0) if method == "hard" else f(1) - iou) if iou > threshold else f(1)


def soft_nms(boxes, scores, iou_threshold, sigma, min_score, method, compat):
    """Indices and scores; boxes and scores are NumPy arrays of float32."""
    weight = {"mmcv": mmcv_weight, "paper": paper_weight}[compat]
    rows = [[*box, score, index] for index, (box, score) in enumerate(zip(boxes, scores, strict=True))]
    n, i = len(rows), 0
    with np.errstate(all="ignore"):
        while i < n:
            best = i
            for j in range(i + 1, n):
                if rows[best][4] < rows[j][4]:
                    best = j
            rows[i], rows[best] = rows[best], rows[i]
            j = i + 1
            while j < n:
                rows[j][4] = rows[j][4] * weight(rows[i], rows[j], f(iou_threshold), f(sigma), method)
                if rows[j][4] < f(min_score):
                    rows[j] = rows[n - 1]
                    n -= 1
                else:
                    j += 1
            i += 1
    return [row[5] for row in rows[:n]], [row[4] for row in rows[:n]]
