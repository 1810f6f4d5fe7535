"""Pipeline for `visual-question-answering`, which transformers 5 removed. Its code is saved with the model."""

from typing import Any

from transformers import Pipeline, ProcessorMixin
from transformers.image_utils import load_image


TASK = "visual-question-answering"


class VisualQuestionAnsweringPipeline(Pipeline):
    """Answer questions about images. The arguments and results are the same as in transformers 4.

    Example:
    ```python
    >>> import biomedclip  # or trust_remote_code=True
    >>> from transformers import pipeline

    >>> answer = pipeline("visual-question-answering", model="answers")
    >>> answer(image="scan.png", question="Is the heart enlarged?", top_k=1)
    [{'score': 0.93, 'answer': 'no'}]
    ```
    """

    _load_processor = True
    _load_image_processor = False
    _load_feature_extractor = False
    _load_tokenizer = False

    def __init__(self, *args: Any, processor: ProcessorMixin, **kwargs: Any):
        super().__init__(*args, processor=processor, **kwargs)

    @classmethod
    def custom_pipelines(cls) -> dict[str, dict[str, Any]]:
        """Return the entry of this pipeline in a saved configuration. It is used with `trust_remote_code=True`."""
        implementation = f"{__name__.rpartition('.')[-1]}.{cls.__name__}"
        return {TASK: {"impl": implementation, "pt": ["AutoModelForVisualQuestionAnswering"], "type": "multimodal"}}

    def __call__(self, image: Any, question: str | list[str] | None = None, **kwargs: Any) -> Any:
        """Answer one or more questions.

        Args:
            image: A Pillow image, a path or a URL, a list of these, or one or more dictionaries
                `{"image": ..., "question": ...}`.
            question: One question per image, one question for all images, or several questions for one image.
            kwargs: Options: `top_k` (maximum number of answers, default 5), `timeout` (seconds to wait for a URL) and
                `batch_size` (default 1).

        Returns:
            For each question, a list of `{"score": ..., "answer": ...}`, best first. Scores are independent
            probabilities and do not sum to 1.

        Raises:
            ValueError: If a question is missing, or if the numbers of questions and images differ.
        """
        if question is None:
            if not (isinstance(image, dict) or _is_list(image)):
                raise ValueError("Pass a `question` with the image, or a dictionary {'image': ..., 'question': ...}.")
            return super().__call__(image, **kwargs)
        if not _is_list(image) and isinstance(question, str):
            return super().__call__({"image": image, "question": question}, **kwargs)
        images = image if _is_list(image) else [image] * len(question)
        questions = [question] * len(images) if isinstance(question, str) else question
        if len(images) != len(questions):
            raise ValueError(
                f"Each question requires one image, but there are {len(questions)} questions and {len(images)} images."
            )
        pairs = [{"image": image, "question": text} for image, text in zip(images, questions, strict=True)]
        return super().__call__(pairs, **kwargs)

    def _sanitize_parameters(self, top_k=None, timeout=None, **kwargs):
        return {"timeout": timeout}, {}, {} if top_k is None else {"top_k": top_k}

    def preprocess(self, inputs, timeout=None):
        """Load the image and process it with its question."""
        image = load_image(inputs["image"], timeout=timeout)
        return self.processor(text=[inputs["question"]], images=[image], return_tensors="pt")

    def _forward(self, model_inputs):
        return {"logits": self.model(**model_inputs).logits}

    def postprocess(self, model_outputs, top_k=5):
        """Return the best answers with their scores."""
        scores, numbers = model_outputs["logits"][0].float().sigmoid().topk(min(top_k, self.model.config.num_labels))
        answers = self.model.config.id2label
        return [
            {"score": score, "answer": answers[number]}
            for score, number in zip(scores.tolist(), numbers.tolist(), strict=True)
        ]


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple)
