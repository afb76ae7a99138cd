"""Every word of the report, in English and Chinese."""
# ruff: noqa: RUF001  Chinese has punctuation of its own

from typing import Literal

Language = Literal["en", "zh"]

WORDS: dict[str, tuple[str, str]] = {
    # the head
    "report": ("Training report", "训练报告"),
    "contents": ("Contents", "目录"),
    "accuracy": ("Accuracy", "准确率"),
    "interval": ("95 % interval", "95% 置信区间"),
    "paid": ("Paid time", "付费时间"),
    "cost": ("Cost", "费用"),
    "goodput": ("Goodput", "有效占比"),
    "goodput_means": ("of the paid time in steps that counted", "的付费时间用在计入结果的训练步上"),
    "exact": ("Exact", "逐位一致"),
    "no_price": ("no --price given", "未指定 --price"),
    "so_far": ("so far", "截至目前"),
    "exact_is": ("Exact: {answer}.", "逐位一致：{answer}。"),
    "exact_yes": ("yes, bit for bit the result of a run without a stop", "是，结果与从未中断的训练逐位相同"),
    "exact_unknown": (
        "not known, because events.jsonl does not tell the whole run",
        "未知，因为 events.jsonl 没有记下整个训练过程",
    ),
    "exact_since": ("no, since attempt {number} ({why})", "否，自第 {number} 次尝试起（{why}）"),
    "attempts_count": ("in {count} attempts", "共 {count} 次尝试"),
    "one_attempt": ("in one attempt", "一次完成"),
    # what was trained
    "trained_on": (
        "{model} learned to tell {classes} classes apart on {data}: {steps} of {total} steps of {batch} images each "
        "({epochs} epochs), seed {seed}.",
        "在 {data} 上训练 {model} 区分 {classes} 个类别：每步 {batch} 张图像，已完成 {steps} / {total} 步"
        "（{epochs} 轮），随机种子 {seed}。",
    ),
    "machine_was": ("The last attempt ran on {machine}.", "最近一次尝试运行于 {machine}。"),
    "evaluated_on": (
        "The figures are those of {weights}/ at step {step}, on the {images} images of the {split} set.",
        "以下数字来自第 {step} 步的 {weights}/ 权重，在{split}的 {images} 张图像上得到。",
    ),
    "evaluated_last": (
        "The figures are those of the model after {step} steps, on the {images} images of the {split} set.",
        "以下数字来自第 {step} 步的模型，在{split}的 {images} 张图像上得到。",
    ),
    "test": ("test", "测试集"),
    "val": ("validation", "验证集"),
    "state_running": (
        "The run is not finished: at step {step} of {total}, last sign of life {heartbeat}.",
        "训练尚未完成：第 {step} / {total} 步，最近一次心跳 {heartbeat}。",
    ),
    "state_stopped": (
        "The run stopped at step {step} of {total} ({reason}); the same command continues it.",
        "训练停在第 {step} / {total} 步（{reason}）；用同一条命令即可继续。",
    ),
    "state_failed": (
        "The run failed at step {step} of {total}: {reason}",
        "训练在第 {step} / {total} 步失败：{reason}",
    ),
    "state_finished": ("The run is finished.", "训练已完成。"),
    "no_predictions": (
        "This run has no predictions/: confusion, classes, calibration and pictures come with its first evaluation.",
        "该训练没有 predictions/：首次评估之后才有混淆矩阵、各类指标、校准与图片。",
    ),
    "damaged_predictions": ("Left out, because {why}", "已略去，原因：{why}"),
    "damaged_file": (
        "{name} is damaged or missing, and what it alone knows is not here: {why}.",
        "{name} 损坏或缺失，仅由它记录的内容未能列出：{why}。",
    ),
    "unfinished": ("unfinished", "未完成"),
    # results
    "results": ("Results", "结果"),
    "measure": ("Measure", "指标"),
    "value": ("Value", "数值"),
    "loss": ("Loss", "损失"),
    "macro": ("Mean over classes", "各类平均"),
    "top5": ("Top-5 accuracy", "前五准确率"),
    "ece": ("Expected calibration error", "期望校准误差 (ECE)"),
    "auc": ("Area under the ROC curve", "ROC 曲线下面积 (AUC)"),
    "interval_note": (
        "Intervals are Wilson's: they say how far other images of the same kind would move the figure, "
        "not how far another seed would.",
        "区间为 Wilson 区间：它反映换一批同类图像时数字的波动，而不是换随机种子的波动。",
    ),
    # curves
    "learning": ("How it learned", "学习过程"),
    "curves_title": ("Loss and accuracy", "损失与准确率"),
    "curves_caption": (
        "Loss and accuracy over all attempts. A dotted line stands where an attempt continued after a stop ({stops}).",
        "所有尝试的损失与准确率曲线。点线表示中断后继续的位置（{stops}）。",
    ),
    "no_stops": ("there was none", "没有中断"),
    "stops_count": ("{count} of them", "共 {count} 处"),
    "epoch": ("epoch", "轮次"),
    "training_loss": ("training loss", "训练损失"),
    "evaluation_loss": ("evaluation loss", "评估损失"),
    "lr_title": ("Learning rate", "学习率"),
    "lr_caption": ("Learning rate of each recorded step.", "各记录步的学习率。"),
    "no_rows": ("There are no rows in metrics.jsonl yet.", "metrics.jsonl 中还没有数据。"),
    # errors
    "errors": ("Where it errs", "错在哪里"),
    "confusion_title": ("Confusion matrix", "混淆矩阵"),
    "confusion_caption": (
        "Rows are the true classes, columns what the model said. The deeper the colour, the larger the share of a row.",
        "行为真实类别，列为模型判断；颜色越深，占该行的比例越大。",
    ),
    "true_class": ("true class", "真实类别"),
    "said_class": ("the model said", "模型判断"),
    "confused_title": ("Most often confused", "最常混淆的类别"),
    "times": ("Times", "次数"),
    "share_of_class": ("Of the class", "占该类"),
    "no_errors": ("There is not one mistake.", "没有一个错误。"),
    "class_title": ("Each class", "各类指标"),
    "class_name": ("Class", "类别"),
    "precision": ("Precision", "精确率"),
    "recall": ("Recall", "召回率"),
    "f1": ("F1", "F1"),
    "support": ("Images", "图像数"),
    "fonts_missing": (
        "No font on this machine can draw Chinese, Japanese or Korean: the files in figures/ are in English and number "
        "the classes; in this page the browser's own fonts draw them. To change it: apt-get install fonts-noto-cjk.",
        "本机没有可用的中文字体：figures/ 中的图片文件使用英文并以编号代替类别；本页文字由浏览器字体显示。"
        "安装字体即可：apt-get install fonts-noto-cjk。",
    ),
    "roc_title": ("ROC curve", "ROC 曲线"),
    "roc_caption": ("Looking for “{positive}”: area {auc}.", "以“{positive}”为正类：面积 {auc}。"),
    "false_positives": ("false positive rate", "假阳性率"),
    "true_positives": ("true positive rate", "真阳性率"),
    # calibration
    "confidence": ("How sure it is", "置信度"),
    "calibration_title": ("Reliability", "可靠性图"),
    "calibration_caption": (
        "Accuracy of the images of each degree of confidence. On the diagonal a model that says 80 % is right in 80 % "
        "of cases. Expected calibration error {ece} ({bins} bins).",
        "各置信度区间内的准确率。落在对角线上表示说 80% 时正确率也是 80%。期望校准误差 {ece}（{bins} 个区间）。",
    ),
    "confidence_axis": ("confidence", "置信度"),
    "accuracy_axis": ("accuracy", "准确率"),
    "images_share": ("share of images", "图像占比"),
    # pictures
    "pictures": ("What it saw", "图像样例"),
    "mistakes_title": ("Most confident mistakes", "最自信的错误"),
    "uncertain_title": ("Most uncertain", "最不确定的图像"),
    "hits_title": ("Most confident hits", "最自信的正确判断"),
    "no_such_pictures": ("There are none.", "没有。"),
    "picture_said": ("said {said}, {share}", "判为 {said}，{share}"),
    "picture_true": ("is {true}", "实为 {true}"),
    "cam_title": ("Where it looked", "模型关注区域"),
    "cam_caption": (
        "Grad-CAM for the class that the model said, in {layer} ({height} x {width} places): the brighter, the more "
        "a place spoke for it.",
        "针对模型所判类别的 Grad-CAM，取自 {layer}（{height} x {width}）：越亮的位置越支持该判断。",
    ),
    "not_kept": (
        "the weights of this step are not kept; it comes when the run is finished",
        "这一步的权重未保留，训练完成后才有",
    ),
    "no_cam": ("No Grad-CAM: {why}", "没有 Grad-CAM：{why}"),
    # time and money
    "time": ("Time and money", "时间与费用"),
    "time_title": ("Where every paid minute went", "付费时间的去向"),
    "time_caption": (
        "Paid time of each attempt: from the start of its process to its last sign of life.",
        "每次尝试的付费时间：从进程启动到最后一次心跳。",
    ),
    "time_total_caption": ("Paid time of all {count} attempts together.", "全部 {count} 次尝试的付费时间合计。"),
    "minutes": ("minutes", "分钟"),
    "seconds": ("seconds", "秒"),
    "hours": ("hours", "小时"),
    "attempt": ("Attempt", "尝试"),
    "attempt_n": ("attempt {number}", "第 {number} 次"),
    "all_attempts": ("all attempts", "全部"),
    "from_step": ("Steps", "步数"),
    "startup": ("start-up", "启动"),
    "restore": ("restore", "恢复"),
    "steps": ("steps that counted", "计入的训练步"),
    "redone": ("steps done again later", "之后重做的步"),
    "saves": ("waiting for saves", "等待保存"),
    "evaluations": ("evaluations", "评估"),
    "rest": ("rest", "其他"),
    "rest_note": (
        "The rest is the end, and what no line of events.jsonl covers.",
        "“其他”包括收尾以及 events.jsonl 未覆盖的时间。",
    ),
    "between_note": (
        "Between the attempts {waited} passed, which nobody paid for.",
        "各次尝试之间相隔 {waited}，不计费。",
    ),
    "down": ("Down before", "此前停机"),
    "end_finished": ("finished", "完成"),
    "end_stopped": ("stopped", "停止"),
    "end_failed": ("failed", "失败"),
    "end_killed": ("killed without a word", "被直接终止"),
    "end_open": ("no end recorded", "尚无结束记录"),
    "total": ("Together", "合计"),
    "redone_steps": ("Steps that were done twice: {count}.", "做了两次的步数：{count}。"),
    # how to repeat
    "repeat": ("How to repeat it", "如何复现"),
    "command": ("The command", "命令"),
    "command_in": ("typed in {folder}", "在 {folder} 中执行"),
    "settings": ("Settings that define the run", "决定结果的设置"),
    "machines": ("Machine of each attempt", "每次尝试的机器"),
    "did_not_train": ("did not come to train", "未开始训练"),
    "made": ("Made by pitstop {version} from the files in {path}.", "由 pitstop {version} 根据 {path} 中的文件生成。"),
}


class Words:
    """`words("no_cam", why="...")` in one language."""

    def __init__(self, language: Language) -> None:
        self.language = language
        self._column = ("en", "zh").index(language)

    def __call__(self, key: str, **fields: object) -> str:
        return WORDS[key][self._column].format(**fields)
