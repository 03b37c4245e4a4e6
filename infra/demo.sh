#!/usr/bin/env bash
# The whole path on synthetic rooms: raw scenes -> shards -> Gaussians -> two distilled models -> exported weights and pictures.
# Usage: bash infra/demo.sh [FOLDER]      (default outputs/demo; a second run goes on from what is there)
out=$(realpath -m "${1:-$(dirname "$0")/../outputs/demo}")
. "$(dirname "$0")/setup.sh"
started=$SECONDS
ranks=$(python -c 'import torch; print(min(2, torch.cuda.device_count() or 2))')
step() { printf '\n== %s (%d s)\n' "$1" $((SECONDS - started)); }

step "1/6 synthetic rooms in the ScanNet++ layout"
python pipeline/make_rooms.py root="$out/rooms" rooms=4 frames=28 scale=0.25 val=1

step "2/6 frames, masks, teacher features and an index of windows (Ray)"
python pipeline/build_shards.py root="$out/rooms" dataset="$out/dataset" width=336 height=224 frames_per_shard=14 features=context \
    source=synthetic-rooms licence=MIT backbone=demo

step "3/6 Gaussians, and the splat into every frame as a sparse matrix (Ray)"
python pipeline/cache_gaussians.py dataset="$out/dataset"

step "4/6 what the dataset holds, and pictures of it"
python storage/describe.py dataset="$out/dataset"
python pipeline/inspect_rows.py dataset="$out/dataset" output="$out/pictures"

for variant in with-blending:0.5 no-blending:1.0; do
    name=${variant%%:*}
    step "5/6 distil $name (torchrun, $ranks ranks)"
    torchrun --standalone --nproc-per-node="$ranks" training/train.py dataset="$out/dataset" output="$out/runs/$name" experiment=demo \
        supervision.blend="${variant##*:}"
done

step "6/6 export"
for name in with-blending no-blending; do
    python training/export.py run="$out/runs/$name" output="$out/weights" network=student
done

printf '\nDone in %d s. Look in %s: weights/, pictures/, runs/*/curves.png, runs/*/pictures/ (synthetic rooms, random substitute backbone).\n' \
    $((SECONDS - started)) "$out"
