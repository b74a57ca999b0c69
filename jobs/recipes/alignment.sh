#!/bin/sh
# Alignment on exam questions, on two cores: `sh jobs/recipes/alignment.sh dpo`, or `grpo`, and perhaps a model.
#
# dpo: exam -> the model's answers -> preferences -> DPO, which prefers each right option to the wrong one believed most.
# grpo: exam -> GRPO, which samples letters to each question and rewards the right one.
# The model answers the validation exam before and after; both are compared at the end. A fine-tuned reader can be the
# start: `sciqa merge --adapter sciqa-run/trained/smollm2-lora`, then `sh jobs/recipes/alignment.sh dpo sciqa-run/merged`.
set -eu
objective=$1
model=${2:-SmolLM2-135M-Instruct}
run=sciqa-run/$objective-$(basename "$model")
index=${INDEX:-$run/index}
case $objective in
dpo) completion=text questions=256 settings='--completion text --steps 16 --eval-every 8' ;;
grpo) completion=letter questions=128 settings='--generations 4 --completion-tokens 8 --steps 32 --eval-every 16' ;;
*) echo "$objective given, dpo or grpo expected" >&2; exit 2 ;;
esac

answer() { # OUTPUT and more options of `sciqa exam`
    sciqa exam --model "$model" --completion $completion --no-baselines --index "$index" --output "$@"
}

answer "$run" --exam validation --name before
python -c "
from sciqa.exam import read_exam
rows = read_exam('train').to_pandas().sample($questions + 24, random_state=0)
rows[:$questions].to_json('$run/train.jsonl', orient='records', lines=True)
rows[$questions:].to_json('$run/held-out.jsonl', orient='records', lines=True)
"
for part in train held-out; do
    answer "$run/$part" --exam "$run/$part.jsonl" --name before
done
# shellcheck disable=SC2086 (settings are several options)
sciqa finetune --objective "$objective" --model "$model" --output "$run" --name "$objective" $settings \
    --train "$run/train/answers/before" --validation "$run/held-out/answers/before" \
    --peft '{r: 16, lora_alpha: 32}' --learning-rate 5e-4
answer "$run" --adapter "$run/trained/$objective" --name after
sciqa compare "$run" --output "$run/comparison" --names before after --baseline before
