from .progress_bar import ProgressBar as ProgressBar
from .rich_progress import RichProgressBar as RichProgressBar, RichProgressBarTheme as RichProgressBarTheme
from .tqdm_progress import TQDMProgressBar as TQDMProgressBar
