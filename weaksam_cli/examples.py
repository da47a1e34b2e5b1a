"""Examples at the end of every command's help: command -> lines and what they do; a test validates each line."""

from __future__ import annotations

EXAMPLES: dict[str, tuple[tuple[str, str], ...]] = {
    "": (
        ("weaksam demo", "All seven stages on drawn images, then runs/demo/report.html"),
        ("weaksam cam --split shapes_train", "One stage; the next finds what it wrote"),
        ("weaksam predict photos/ --run runs/demo", "The trained detector on your photos"),
        ("weaksam retrain --help", "A stage's options and settings"),
    ),
    "cam": (
        ("weaksam cam --split shapes_train", "Learn from tags, then map every image"),
        ("weaksam cam --split shapes_test", "Apply what was learnt; classes are predicted"),
        (
            "weaksam cam --split shapes_train --epochs 12 --lr 5e-4 --resume",
            "Other settings; go on if killed",
        ),
        ("weaksam cam --split voc07_trainval --recipe voc07 --device cuda", "The published classifier"),
    ),
    "prompt": (
        ("weaksam prompt --split shapes_train", "Points of every map of the run"),
        ("weaksam prompt --split shapes_train --viz 8 --resume", "Also draw the first eight images"),
        ("weaksam prompt --split shapes_train --clustering none --out runs/all-peaks", "Keep every peak"),
    ),
    "propose": (
        ("weaksam propose --split shapes_train", "Boxes from a grid and the prompts, by sam-nano"),
        ("weaksam propose --split voc07_trainval --recipe voc07 --device cuda", "As published, by SAM ViT-H"),
        ("weaksam propose --split voc07_trainval --shard 0/4 --resume", "One of four jobs"),
    ),
    "wsod": (
        ("weaksam wsod --split shapes_train", "Train on tags and proposals, then detect"),
        ("weaksam wsod --split shapes_test", "Apply the trained detector"),
        (
            "weaksam wsod --split shapes_train --method oicr --set epochs=20",
            "Another method, a longer training",
        ),
    ),
    "pgt": (
        ("weaksam pgt --split shapes_train", "The boxes worth training on"),
        ("weaksam pgt --split shapes_train --mode paper --overwrite", "By Algorithm 2 as published"),
        (
            "weaksam pgt --split shapes_train --trusted corrected.json --overwrite",
            "Boxes of people where there are any",
        ),
        (
            "weaksam pgt --split shapes_train --run runs/shapes-2 "
            "--detections runs/shapes/retrain/shapes_train/detections.json",
            "A second round, from the retrained detector",
        ),
    ),
    "retrain": (
        ("weaksam retrain --split shapes_train", "Faster R-CNN on the pseudo boxes, with RoI drop"),
        ("weaksam retrain --split shapes_test", "Apply it; evaluate with `weaksam evaluate`"),
        ("weaksam retrain --split shapes_train --recipe detr", "RT-DETR instead (extra hf)"),
        ("weaksam retrain --split shapes_test --tta --overwrite", "Merge several sizes and mirrored images"),
    ),
    "wsis": (
        ("weaksam wsis --split shapes_train", "Masks from boxes, then a segmenter"),
        ("weaksam wsis --split shapes_test", "Apply it"),
        ("weaksam wsis --split shapes_train --segmenter sam-vit-h --device cuda", "A published segmenter"),
    ),
    "run": (
        ("weaksam run ~/photos/pets", "Any folder of images and tags, on a CPU"),
        ("weaksam run voc07 --device cuda", "The published chain; goes on where it was stopped"),
        ("weaksam run pets --until retrain --classes dog,cat --set wsod.epochs=8", "A part, other settings"),
        ("weaksam run pets --dry-run", "The steps, and whether the first could start"),
    ),
    "rank": (
        ("weaksam rank runs/demo", "The twenty images to correct first, and why"),
        ("weaksam rank runs/pets --top 0 --json", "All of them, for a program"),
    ),
    "show": (
        ("weaksam show runs/demo/wsod/shapes_train --image shapes_0001", "Its boxes, drawn"),
        ("weaksam show runs/demo/cam/shapes_train/cams.h5 --image shapes_0001 --out pictures", "Its maps"),
    ),
    "status": (
        ("weaksam status runs/demo", "Every step, and the command to go on"),
        ("weaksam status --json", "All runs below runs/, for a program"),
    ),
    "recipes": (("weaksam recipes list", "What there is"),),
    "recipes list": (
        ("weaksam recipes list", "Names, bases and purposes"),
        ("weaksam recipes list --json", "For a program"),
    ),
    "recipes show": (
        ("weaksam recipes show offline", "What it sets, as YAML"),
        ("weaksam recipes show voc07 wsod --all", "Every setting of one stage"),
    ),
    "recipes diff": (
        ("weaksam recipes diff voc07 coco14", "Settings in which two differ"),
        ("weaksam recipes diff offline my.yaml --json", "A file of your own, for a program"),
    ),
    "demo": (
        ("weaksam demo", "Ten minutes on two cores, then runs/demo/report.html"),
        ("weaksam demo --train-images 24 --test-images 8 --run runs/small", "A smaller one"),
        ("weaksam demo --set wsod.epochs=4", "Another setting: what depends on it is done again"),
    ),
    "predict": (
        ("weaksam predict photos/ --run runs/demo", "Files, folders or patterns; no tags needed"),
        ("weaksam predict photos/ --run runs/demo --masks", "A mask for every box"),
        (
            "weaksam predict photos/ --run runs/demo --format yolo --format csv",
            "Also as text files and as a table",
        ),
        ("weaksam predict photos/ --run runs/demo --stage wsis", "Boxes and masks of the trained segmenter"),
        ("weaksam predict cat.jpg --detector detector.safetensors --out found", "Any detector file"),
    ),
    "convert": (
        ("weaksam convert runs/demo/predict --format yolo", "Text files and data.yaml of predictions"),
        ("weaksam convert runs/demo/pgt/shapes_train/pgt.json --format voc --format csv", "Of pseudo boxes"),
        ("weaksam convert runs/demo --format labelstudio --out tasks", "Tasks to correct in Label Studio"),
    ),
    "evaluate": (
        ("weaksam evaluate --dataset shapes", "Every metric of runs/shapes"),
        ("weaksam evaluate detections.json --split shapes_test --expect 'AP50>=0.6'", "One file, as a gate"),
        ("weaksam evaluate --dataset shapes --run runs/demo --json", "For a program"),
    ),
    "export": (
        (
            "weaksam export runs/voc12/retrain/voc12_test/detections.json --split voc12_test",
            "comp4_det_test_<class>.txt for VOC's server",
        ),
        (
            "weaksam export segmentations.json --split coco17_test-dev --name mine --out submission",
            "A zip for COCO's server",
        ),
    ),
    "import": (
        (
            "weaksam import proposals.pkl --split voc07_trainval --out released",
            "Published proposals; then wsod --proposals released/proposals.h5",
        ),
        (
            "weaksam import bbox.json --split voc07_trainval --out released",
            "MIST's detections, for pgt --detections",
        ),
    ),
    "report": (
        ("weaksam report runs/demo", "Metrics and pictures on one page"),
        ("weaksam report runs/demo --images 40 --order worst", "Where it goes wrong"),
        ("weaksam report runs/demo runs/other", "Two runs compared"),
    ),
    "tensorboard": (
        (
            "weaksam tensorboard runs/demo",
            "All curves so far; then: tensorboard --logdir runs/demo/tensorboard",
        ),
        ("weaksam tensorboard runs/demo --follow", "While a stage trains"),
    ),
    "inspect": (
        ("weaksam inspect runs/demo/wsod/shapes_train", "How a stage ended, with its settings"),
        (
            "weaksam inspect runs/demo/propose/shapes_train/proposals.h5 --image shapes_0001",
            "One image's rows",
        ),
    ),
    "doctor": (
        ("weaksam doctor", "Is everything here?"),
        ("weaksam doctor --data ~/datasets --json", "For a program"),
    ),
    "data": (
        ("weaksam data check ~/photos/pets", "What is it, what can its tags teach, what is wrong"),
        ("weaksam data init ~/photos/pets --val 20%", "Describe it, and hold out a fifth"),
    ),
    "data check": (
        ("weaksam data check ~/photos/pets", "Any folder: layout, classes, damaged and doubled images"),
        ("weaksam data check pets --fast", "A data set by its name; images are not read"),
        ("weaksam data check voc07 --classes bus,car,cat,train --json", "Restricted, for a program"),
    ),
    "data init": (
        ("weaksam data init ~/photos/pets", "Write dataset.yaml, to be edited"),
        ("weaksam data init ~/photos/pets --val 20% --seed 1", "Hold out a fifth of every class"),
        ("weaksam data init coco17 --classes dog,cat --overwrite", "Two classes of a large set"),
    ),
    "weights": (
        ("weaksam weights list", "What can be fetched, and what is here"),
        ("weaksam weights get sam-vit-b", "Fetch and check"),
    ),
    "weights list": (
        ("weaksam weights list", "Names, sizes, licences"),
        ("weaksam weights list --json", "For a program"),
    ),
    "weights get": (
        ("weaksam weights get sam-vit-h", "The published SAM ViT-H, 2.6 GB"),
        ("weaksam weights get sam-vit-h --offline", "Only say whether it is here"),
    ),
    "weights verify": (
        ("weaksam weights verify sam-vit-b", "The cached file: is it the published one, does it fit?"),
        ("weaksam weights verify sam-vit-b my_sam.pth", "A file of your own"),
    ),
    "weights path": (("weaksam weights path sam-vit-h", "Where it is"),),
}
