"""Evaluation measures of the tasks.

Inputs are predictions and ground truth as plain records or numpy arrays; outputs are accuracies in
percent, ranks, or (sum, count) pairs that add up over batches and hosts. Nothing here keeps state.

* `vqa`: VQA v2 answer normalisation and accuracy.
* `gqa`: GQA accuracy by question type, consistency and distribution.
* `retrieval`: ranks and recall of caption-to-image and image-to-caption retrieval.
* `boxes`: IoU with the inclusive-pixel convention and referring-expression accuracy.
* `captions`: BLEU, ROUGE-L and CIDEr-D; `ptb` cuts captions into words for them.
* `texts`: exact match, nearest name and log-perplexity of written texts.
* `result_files`: predictions as the test servers for captions and VQA take them.
* `choices`: multiple-choice, image-pair, three-way and soft-target accuracy.
"""
