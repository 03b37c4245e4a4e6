"""The splat on a CPU, compiled by numba on first use and cached on disk: projection, binning to tiles, compositing, summing feature rows.

`composite_tile` decides which Gaussian weighs how much in which pixel; it is the only place where the compositing rules stand. What is then
done with the weights (here: summing feature rows) is a separate loop, so a channel costs one pass over contiguous rows and no decision.

Geometry and weights are computed in float64 whatever the features' type: this is scalar code, where float64 costs nothing, and no decision
(near cut, alpha cut, stop, order) flips by rounding.

numba's disk cache notices changes in a function's own file only: keep a compiled function and the compiled functions it calls in one file.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

TILE = 16  # pixels along a tile's side
ALPHA_MIN = 1.0 / 255.0  # weaker contributions are skipped
TRANSMITTANCE_MIN = 1e-4  # a pixel stops before the Gaussian that would leave this much or less
CLAMP_MARGIN = 0.15  # of the image's size: how far outside the image the projection is linearised
_ROOM = 128  # contributions per pixel that are made room for at first
_SLACK = 1e-3  # pixels added to an outline, so that the test of alpha itself decides on its border

# A projected Gaussian, one cache line. A row of pixels cuts it in a 1D Gaussian: with dx, dy = centre - pixel,
#   sigma = row * dy^2 + col * (dx - shear * dy)^2,   alpha = opacity * exp(-sigma),   alpha >= 1/255  <=>  sigma <= reach.
SPLAT = np.dtype([(name, np.float64) for name in ("u", "v", "depth", "row", "col", "shear", "opacity", "reach")])

_compiled = njit(nogil=True, cache=True, fastmath={"contract"}, error_model="numpy")


@_compiled
def covariances(quats, scales):
    """R diag(scales^2) R^T [N,3,3] of quaternions [N,4] (w,x,y,z; normalised here) and standard deviations [N,3], all float64."""
    covars = np.empty((quats.shape[0], 3, 3))
    rotation = np.empty((3, 3))
    for n in range(quats.shape[0]):
        w, x, y, z = quats[n, 0], quats[n, 1], quats[n, 2], quats[n, 3]
        f = 2.0 / (w * w + x * x + y * y + z * z)
        rotation[0, 0], rotation[0, 1], rotation[0, 2] = 1.0 - f * (y * y + z * z), f * (x * y - w * z), f * (x * z + w * y)
        rotation[1, 0], rotation[1, 1], rotation[1, 2] = f * (x * y + w * z), 1.0 - f * (x * x + z * z), f * (y * z - w * x)
        rotation[2, 0], rotation[2, 1], rotation[2, 2] = f * (x * z - w * y), f * (y * z + w * x), 1.0 - f * (x * x + y * y)
        v0, v1, v2 = scales[n, 0] ** 2, scales[n, 1] ** 2, scales[n, 2] ** 2
        for i in range(3):
            for j in range(3):
                covars[n, i, j] = (
                    rotation[i, 0] * rotation[j, 0] * v0 + rotation[i, 1] * rotation[j, 1] * v1 + rotation[i, 2] * rotation[j, 2] * v2
                )
    return covars


@_compiled
def project(means, covars, opacities, viewmat, K, width, height, near, far, eps2d, antialiased, splats, ids):
    """Projects Gaussians into one camera; those that can be seen go to `splats` and `ids`, in index order. Returns how many.

    means [N,3], covars [N,3,3] (upper triangle), opacities [N], viewmat [4,4] world-to-camera, K [3,3] pixels, all float64;
    splats [N] of SPLAT and ids [N] int32 are filled from the front.
    """
    fx, fy, cx, cy = K[0, 0], K[1, 1], K[0, 2], K[1, 2]
    margin_x, margin_y = CLAMP_MARGIN * width / fx, CLAMP_MARGIN * height / fy
    count = 0
    for n in range(means.shape[0]):
        if opacities[n] < ALPHA_MIN:
            continue
        m0, m1, m2 = means[n, 0], means[n, 1], means[n, 2]
        z = viewmat[2, 0] * m0 + viewmat[2, 1] * m1 + viewmat[2, 2] * m2 + viewmat[2, 3]
        if z < near or z > far:
            continue
        x = viewmat[0, 0] * m0 + viewmat[0, 1] * m1 + viewmat[0, 2] * m2 + viewmat[0, 3]
        y = viewmat[1, 0] * m0 + viewmat[1, 1] * m1 + viewmat[1, 2] * m2 + viewmat[1, 3]
        # The Jacobian is taken at a point clamped to the image and its margin; the centre is not clamped.
        slope_x = min(max(x / z, -(cx / fx + margin_x)), (width - cx) / fx + margin_x)
        slope_y = min(max(y / z, -(cy / fy + margin_y)), (height - cy) / fy + margin_y)
        jx, jxz, jy, jyz = fx / z, -fx * slope_x / z, fy / z, -fy * slope_y / z
        a0 = jx * viewmat[0, 0] + jxz * viewmat[2, 0]
        a1 = jx * viewmat[0, 1] + jxz * viewmat[2, 1]
        a2 = jx * viewmat[0, 2] + jxz * viewmat[2, 2]
        b0 = jy * viewmat[1, 0] + jyz * viewmat[2, 0]
        b1 = jy * viewmat[1, 1] + jyz * viewmat[2, 1]
        b2 = jy * viewmat[1, 2] + jyz * viewmat[2, 2]
        s00, s01, s02 = covars[n, 0, 0], covars[n, 0, 1], covars[n, 0, 2]
        s11, s12, s22 = covars[n, 1, 1], covars[n, 1, 2], covars[n, 2, 2]
        sa0, sa1, sa2 = s00 * a0 + s01 * a1 + s02 * a2, s01 * a0 + s11 * a1 + s12 * a2, s02 * a0 + s12 * a1 + s22 * a2
        sb0, sb1, sb2 = s00 * b0 + s01 * b1 + s02 * b2, s01 * b0 + s11 * b1 + s12 * b2, s02 * b0 + s12 * b1 + s22 * b2
        xx, xy, yy = a0 * sa0 + a1 * sa1 + a2 * sa2, b0 * sa0 + b1 * sa1 + b2 * sa2, b0 * sb0 + b1 * sb1 + b2 * sb2
        det_sharp = xx * yy - xy * xy
        xx += eps2d
        yy += eps2d
        det = xx * yy - xy * xy
        if not (0.0 < det < np.inf):
            continue
        opacity = opacities[n]
        if antialiased:
            opacity *= math.sqrt(max(0.0, det_sharp / det))
            if opacity < ALPHA_MIN:
                continue
        splat = splats[count]
        splat.u, splat.v, splat.depth = fx * x / z + cx, fy * y / z + cy, z
        splat.row, splat.col, splat.shear = 0.5 / yy, 0.5 * yy / det, xy / yy
        splat.opacity, splat.reach = opacity, math.log(opacity / ALPHA_MIN)
        ids[count] = n
        count += 1
    return count


@_compiled
def _tile_box(splat, tiles_x, tiles_y):
    """First and one past the last tile, in x and in y, that the outline alpha = 1/255 can touch."""
    half_x = math.sqrt(splat.reach * (1.0 / splat.col + splat.shear * splat.shear / splat.row)) + _SLACK
    half_y = math.sqrt(splat.reach / splat.row) + _SLACK
    x0 = int(min(max(np.floor((splat.u - half_x) / TILE), 0.0), float(tiles_x)))
    x1 = int(min(max(np.floor((splat.u + half_x) / TILE) + 1.0, 0.0), float(tiles_x)))
    y0 = int(min(max(np.floor((splat.v - half_y) / TILE), 0.0), float(tiles_y)))
    y1 = int(min(max(np.floor((splat.v + half_y) / TILE) + 1.0, 0.0), float(tiles_y)))
    return x0, x1, y0, y1


@_compiled
def bin_to_tiles(splats, tiles_x, tiles_y):
    """Lists for each tile the splats that may touch it, in their order: offsets [tiles+1] int64 and the concatenated lists, int32."""
    offsets = np.zeros(tiles_x * tiles_y + 1, np.int64)
    for s in range(splats.shape[0]):
        x0, x1, y0, y1 = _tile_box(splats[s], tiles_x, tiles_y)
        for ty in range(y0, y1):
            for tx in range(x0, x1):
                offsets[ty * tiles_x + tx + 1] += 1
    offsets = np.cumsum(offsets)
    cursor = offsets[:-1].copy()
    lists = np.empty(offsets[-1], np.int32)
    for s in range(splats.shape[0]):
        x0, x1, y0, y1 = _tile_box(splats[s], tiles_x, tiles_y)
        for ty in range(y0, y1):
            for tx in range(x0, x1):
                tile = ty * tiles_x + tx
                lists[cursor[tile]] = s
                cursor[tile] += 1
    return offsets, lists


@_compiled
def _pixels_between(low, high, begin, end):
    """The pixels of begin..end-1 whose centres lie between low and high: the first, and one past the last."""
    # Clipped while they are floats: what lies far outside may not fit an integer.
    first = min(max(np.ceil(low - 0.5), float(begin)), float(end))
    past = min(max(np.floor(high - 0.5) + 1.0, float(begin)), float(end))
    return int(first), int(past)


@_compiled
def _grown(array):
    """A copy with room for twice as many entries per pixel."""
    bigger = np.empty((array.shape[0], 2 * array.shape[1]), array.dtype)
    bigger[:, : array.shape[1]] = array
    return bigger


@_compiled
def composite_tile(splats, tile_list, x0, x1, y0, y1, alpha_clamp, entries, weights, counts, transmittance):
    """Front-to-back compositing of one tile: which splat weighs how much (alpha * T) in which pixel.

    tile_list: indices into `splats`, nearest first. The tile is the pixels x0 <= x < x1, y0 <= y < y1; pixel (x, y) has the slot
    (y - y0) * TILE + x - x0. Fills per slot: entries [TILE^2, room] int32 (index into `splats`), weights [TILE^2, room], counts [TILE^2]
    int32 and transmittance [TILE^2] (what is left for the background). Returns entries and weights, larger ones where the room ran out.
    """
    counts[:] = 0
    transmittance[:] = 1.0
    alive = (x1 - x0) * (y1 - y0)
    for s in tile_list:
        splat = splats[s]
        u, v, row, col, shear, opacity, reach = splat.u, splat.v, splat.row, splat.col, splat.shear, splat.opacity, splat.reach
        half = math.sqrt(reach / row) + _SLACK
        first_y, past_y = _pixels_between(v - half, v + half, y0, y1)
        for y in range(first_y, past_y):
            dy = v - (y + 0.5)
            sigma_row = row * dy * dy
            centre = u - shear * dy
            half = math.sqrt(max(reach - sigma_row, 0.0) / col) + _SLACK
            first_x, past_x = _pixels_between(centre - half, centre + half, x0, x1)
            for x in range(first_x, past_x):
                slot = (y - y0) * TILE + x - x0
                left = transmittance[slot]
                if left < 0.0:  # stopped
                    continue
                dx = centre - (x + 0.5)
                alpha = min(alpha_clamp, opacity * math.exp(-(sigma_row + col * dx * dx)))
                if alpha < ALPHA_MIN:
                    continue
                after = left * (1.0 - alpha)
                if after <= TRANSMITTANCE_MIN:
                    transmittance[slot] = -left
                    alive -= 1
                    continue
                count = counts[slot]
                if count == entries.shape[1]:
                    entries, weights = _grown(entries), _grown(weights)
                entries[slot, count] = s
                weights[slot, count] = alpha * left
                counts[slot] = count + 1
                transmittance[slot] = after
        if alive == 0:
            break
    for slot in range(transmittance.shape[0]):
        transmittance[slot] = abs(transmittance[slot])
    return entries, weights


@_compiled
def _add_four(total, row0, row1, row2, row3, w0, w1, w2, w3):
    for c in range(total.size):
        total[c] += w0 * row0[c] + w1 * row1[c] + w2 * row2[c] + w3 * row3[c]


@_compiled
def _add_one(total, row, w):
    for c in range(total.size):
        total[c] += w * row[c]


@_compiled
def _add_rows(total, features, ids, entries, weights):
    """total [C] += sum over k of weights[k] * features[ids[entries[k]]]."""
    k = 0
    while k + 4 <= entries.size:  # four rows per pass over the total: it is read and written a quarter as often
        n0, n1, n2, n3 = ids[entries[k]], ids[entries[k + 1]], ids[entries[k + 2]], ids[entries[k + 3]]
        w0, w1, w2, w3 = weights[k], weights[k + 1], weights[k + 2], weights[k + 3]
        _add_four(total, features[n0], features[n1], features[n2], features[n3], w0, w1, w2, w3)
        k += 4
    while k < entries.size:
        _add_one(total, features[ids[entries[k]]], weights[k])
        k += 1


@_compiled
def render_tiles(first, last, width, height, splats, ids, offsets, lists, alpha_clamp, features, background, out, out_alpha):
    """Renders the tiles first..last-1 of one view. features [N,C], background [C], out [H*W,C] of one dtype; out_alpha [H*W]."""
    tiles_x = (width + TILE - 1) // TILE
    channels = features.shape[1]
    entries = np.empty((TILE * TILE, _ROOM), np.int32)
    weights = np.empty((TILE * TILE, _ROOM), features.dtype)
    counts = np.empty(TILE * TILE, np.int32)
    transmittance = np.empty(TILE * TILE, np.float64)
    for tile in range(first, last):
        x0, y0 = tile % tiles_x * TILE, tile // tiles_x * TILE
        x1, y1 = min(x0 + TILE, width), min(y0 + TILE, height)
        entries, weights = composite_tile(
            splats, lists[offsets[tile] : offsets[tile + 1]], x0, x1, y0, y1, alpha_clamp, entries, weights, counts, transmittance
        )
        for y in range(y0, y1):
            for x in range(x0, x1):
                slot, pixel = (y - y0) * TILE + x - x0, y * width + x
                out_alpha[pixel] = 1.0 - transmittance[slot]
                for c in range(channels):
                    out[pixel, c] = transmittance[slot] * background[c]
        for y in range(y0, y1):
            for x in range(x0, x1):
                slot = (y - y0) * TILE + x - x0
                _add_rows(out[y * width + x], features, ids, entries[slot, : counts[slot]], weights[slot])
