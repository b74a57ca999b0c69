#!/usr/bin/env bash
# From PDFs to a tuned model, and ROUGE of its answers beside those of its base (docs/generating.md).
#
#   bash jobs/recipes/papers.sh                                  # three PDFs, made of the demo corpus
#   bash jobs/recipes/papers.sh PAPERS RUN --licence "CC BY 4.0" # a folder of PDFs, and the output folder
#   MODEL=HuggingFaceTB/SmolLM2-1.7B-Instruct bash jobs/recipes/papers.sh PAPERS RUN \
#       --engine openai --base-url http://localhost:8000/v1 --model NAME
#
# MODEL is tuned on instructions that the model of --model writes from the papers; without that option MODEL writes them
# itself, after it has learned to from the packaged exam. Options after RUN are those of `sciqa generate`. A recipe that
# was stopped goes on with the same command.
set -euo pipefail

here=$(dirname "$0")
papers=${1:-papers-run/papers} run=${2:-papers-run} model=${MODEL:-SmolLM2-135M-Instruct}
if [ $# = 0 ]; then
    [ -d "$papers" ] || python "$here/make_papers.py" "$papers"
    set -- "$papers" "$run" --licence "passages CC BY-SA 4.0, by the authors of English Wikipedia"
fi
shift $(($# < 2 ? $# : 2))
if [[ " $* " == *" --config"[\ =]* ]]; then
    echo "$0: --config: pass the options of sciqa generate as flags, since --model among them decides what is run" >&2
    exit 2
fi
tune=(sciqa finetune --objective instruct --model "$model" --peft '{r: 16, lora_alpha: 32}' --learning-rate 5e-4
    --max-length 512 --output "$run")

sciqa corpus --corpus "$papers" --passage-tokens 160 --passage-overlap 0 --output "$run"
if [[ " $* " != *" --model"[\ =]* ]]; then
    python "$here/instruction_writer.py" "$run/writer"
    "${tune[@]}" --train "$run/writer/train.jsonl" --validation "$run/writer/validation.jsonl" --name writer \
        --epochs 1 --batch-size 8 --eval-every 12
    set -- --model "$model" --adapter "$run/trained/writer" "$@"
fi
sciqa generate --kind instructions --reply-tokens 200 --reply-batch 32 --output "$run" "$@"
python "$here/split_triples.py" "$run/generated/instructions" "$run/triples"
"${tune[@]}" --train "$run/triples/train.jsonl" --validation "$run/triples/validation.jsonl" --name papers \
    --epochs 3
sciqa evaluate --text "$run/triples/held-out.jsonl" --model "$model" --tuned "$run/trained/papers" \
    --reply-tokens 128 --reply-batch 32 --output "$run"
