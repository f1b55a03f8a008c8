"""The libraries of docs/from-aws.md install by requirements.txt, import, and leave NumPy and Chainer as they are."""

import re

from support import IMAGE, ROOT, docker, make_estimator

(PART,) = re.findall(r'^## Libraries\n(.*?)^## ', (ROOT / 'docs' / 'from-aws.md').read_text(), re.MULTILINE | re.DOTALL)
ROWS = re.findall(r'^\| `([^`]+)` \| `([^`]+)` \|', PART, re.MULTILINE)
SCRIPT = """
import warnings
warnings.simplefilter('ignore')
import chainer, numpy
{imports}
print('versions', chainer.__version__, numpy.__version__)
"""


def test_libraries_install_and_import(session, tmp_path, capsys):
    (tmp_path / 'requirements.txt').write_text('\n'.join(requirement for requirement, _ in ROWS))
    (tmp_path / 'script.py').write_text(SCRIPT.format(imports='\n'.join(line for _, line in ROWS)))
    make_estimator(session, 'script.py', dict(source_dir=str(tmp_path), dependencies=[])).fit()
    before = docker(f'run --rm {IMAGE} python -c', 'import numpy; print(numpy.__version__)').strip()
    assert len(ROWS) > 5 and f'versions 7.8.1 {before}' in capsys.readouterr().out


def test_chainercv_is_in_the_image():
    code = 'import warnings; warnings.simplefilter("ignore"); import chainercv; print(chainercv.links.YOLOv3.__name__)'
    assert docker(f'run --rm {IMAGE} python -c', code) == 'YOLOv3\n'
