"""A page in the browser for asking a trained model about pictures.

    pip install 'twelve_in_one[data,demo]'
    python -m twelve_in_one.demo --model DIR

`questions.py` defines and asks the questions, `page.py` is the Gradio page around them.
"""
