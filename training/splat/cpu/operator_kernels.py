"""From a tile's contributions (`composite_tile`) into token space, compiled by numba on first use and cached on disk.

A lift comes here by rows: the entries lift_offsets[g]:lift_offsets[g+1] of `lift_tokens` and `lift_weights` are Gaussian g's.
Sums are float64.
"""

from __future__ import annotations

import numpy as np
from numba import njit

_compiled = njit(nogil=True, cache=True, fastmath={"contract"}, error_model="numpy")


@_compiled
def lift_pixels(slots, entries, weights, counts, ids, lift_offsets, lift_tokens, lift_weights, row, lengths):
    """What pixels show of each token: for each of `slots` the tokens [nnz] int32 and weights [nnz] float64, one after the other.

    entries, weights, counts: of `composite_tile`; ids: the Gaussian of each entry. row [Nctx] float64 is scratch, zero before and after.
    Fills lengths [slots]: how many tokens each slot has.
    """
    room = 0
    for slot in slots:
        for k in range(counts[slot]):
            g = ids[entries[slot, k]]
            room += lift_offsets[g + 1] - lift_offsets[g]
    columns, values = np.empty(room, np.int32), np.empty(room, np.float64)
    end = 0
    for i in range(slots.shape[0]):
        slot, begin = slots[i], end
        for k in range(counts[slot]):
            g, weight = ids[entries[slot, k]], weights[slot, k]
            for e in range(lift_offsets[g], lift_offsets[g + 1]):
                if lift_weights[e] > 0:
                    token = lift_tokens[e]
                    if row[token] == 0:
                        columns[end] = token
                        end += 1
                    row[token] += weight * lift_weights[e]
        for e in range(begin, end):
            values[e] = row[columns[e]]
            row[columns[e]] = 0
        lengths[i] = end - begin
    return columns[:end].copy(), values[:end].copy()


@_compiled
def sum_masks(mask_hw, stride, entries, weights, counts, ids, lift_offsets, lift_tokens, lift_weights, totals):
    """Adds a tile's pixels to their masks' sums in token space, totals [M,Nctx] float64.

    mask_hw: [h,w] row of `totals` for each pixel of the tile, or -1; pixel (y, x) has the slot y * stride + x. The rest: see `lift_pixels`.
    Weights are summed by Gaussian before they are lifted: a Gaussian shows in many of a mask's pixels.
    """
    height, width = mask_hw.shape
    done = mask_hw < 0
    sums, touched = np.zeros(ids.shape[0], np.float64), np.empty(ids.shape[0], np.int32)
    for first in range(height * width):
        if done[first // width, first % width]:
            continue
        mask, count = mask_hw[first // width, first % width], 0
        for pixel in range(first, height * width):
            y, x = pixel // width, pixel % width
            if done[y, x] or mask_hw[y, x] != mask:
                continue
            done[y, x] = True
            slot = y * stride + x
            for k in range(counts[slot]):
                entry = entries[slot, k]
                if sums[entry] == 0:
                    touched[count] = entry
                    count += 1
                sums[entry] += weights[slot, k]
        for entry in touched[:count]:
            g = ids[entry]
            for e in range(lift_offsets[g], lift_offsets[g + 1]):
                totals[mask, lift_tokens[e]] += sums[entry] * lift_weights[e]
            sums[entry] = 0


@_compiled
def mix_rows(taps, tap_weights, begins, lengths, columns, values, n_columns):
    """Rows sum_k tap_weights[t,k] * row taps[t,k], where row p has the `values` and `columns` begins[p]:begins[p]+lengths[p].

    taps, tap_weights: [T,K]. Returns offsets [T+1] int64, ascending columns [nnz] int32 and values [nnz] float32.
    """
    room = 0
    for p in taps.ravel():
        room += lengths[p]
    mixed_columns, mixed_values = np.empty(room, np.int32), np.empty(room, np.float32)
    offsets = np.zeros(taps.shape[0] + 1, np.int64)
    row = np.zeros(n_columns, np.float64)
    end = 0
    for t in range(taps.shape[0]):
        begin = end
        for k in range(taps.shape[1]):
            weight, p = tap_weights[t, k], taps[t, k]
            if weight == 0:
                continue
            for e in range(begins[p], begins[p] + lengths[p]):
                if row[columns[e]] == 0:
                    mixed_columns[end] = columns[e]
                    end += 1
                row[columns[e]] += weight * values[e]
        mixed_columns[begin:end].sort()
        for e in range(begin, end):
            mixed_values[e] = row[mixed_columns[e]]
            row[mixed_columns[e]] = 0
        offsets[t + 1] = end
    return offsets, mixed_columns[:end].copy(), mixed_values[:end].copy()


@_compiled
def weigh_tokens(pixels, slots, entries, weights, counts, ids, lift_offsets, lift_tokens, lift_weights, column_of):
    """How much of each token a tile's Gaussians gather from the pixels that they show in, weighed as they are there.

    pixels, slots: [P] row of the lift, and slot, of each of the tile's pixels; the lift is one of pixels here. The rest: see `lift_pixels`.
    column_of: [Nctx] int32 is scratch, -1 before and after. Returns Gaussians [nnz] int32, tokens [nnz] int32 and sums [nnz] float64;
    the token Nctx stands for the sum of the weights themselves.
    """
    n_context = column_of.shape[0]
    tokens = [np.int32(n_context)]
    for pixel in pixels:
        for e in range(lift_offsets[pixel], lift_offsets[pixel + 1]):
            if lift_weights[e] > 0 and column_of[lift_tokens[e]] < 0:
                column_of[lift_tokens[e]] = len(tokens)
                tokens.append(lift_tokens[e])
    sums = np.zeros((ids.shape[0], len(tokens)), np.float64)
    for i in range(slots.shape[0]):
        slot, pixel = slots[i], pixels[i]
        for k in range(counts[slot]):
            entry, weight = entries[slot, k], weights[slot, k]
            sums[entry, 0] += weight
            for e in range(lift_offsets[pixel], lift_offsets[pixel + 1]):
                if lift_weights[e] > 0:
                    sums[entry, column_of[lift_tokens[e]]] += weight * lift_weights[e]
    for token in tokens[1:]:
        column_of[token] = -1
    count = np.count_nonzero(sums)
    gaussians, columns, values = np.empty(count, np.int32), np.empty(count, np.int32), np.empty(count, np.float64)
    end = 0
    for entry in range(ids.shape[0]):
        for column in range(len(tokens)):
            if sums[entry, column] > 0:
                gaussians[end], columns[end], values[end] = ids[entry], tokens[column], sums[entry, column]
                end += 1
    return gaussians, columns, values
