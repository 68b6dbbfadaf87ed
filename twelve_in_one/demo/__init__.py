"""A page in the browser on which a trained model is asked about pictures.

    pip install 'twelve_in_one[data,demo]'
    python -m twelve_in_one.demo --model DIR

`questions.py` has what can be asked and asks it, `page.py` the page around it, of Gradio.
"""
