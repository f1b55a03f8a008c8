"""Print the image's Python and Debian packages as an SBOM in CycloneDX 1.6 (`make sbom`)."""

import importlib.metadata
import json
import re
import subprocess
from urllib.parse import quote


def components():
    """Yield (name, version, package URL) of every package."""
    for package in importlib.metadata.distributions():
        name = re.sub(r'[-_.]+', '-', package.metadata['Name']).lower()
        yield name, package.version, f'pkg:pypi/{name}@{quote(package.version)}'
    for line in subprocess.check_output(
        ['dpkg-query', '--show', '--showformat', r'${Package} ${Version} ${Architecture}\n'], text=True
    ).splitlines():
        name, version, architecture = line.split()
        purl = f'pkg:deb/debian/{quote(name)}@{quote(version, ":")}?arch={architecture}&distro=trixie'
        yield name, version, purl


print(
    json.dumps(
        {
            'bomFormat': 'CycloneDX',
            'specVersion': '1.6',
            'version': 1,
            'components': [
                {'type': 'library', 'bom-ref': purl, 'name': name, 'version': version, 'purl': purl}
                for name, version, purl in sorted(set(components()))
            ],
        },
        indent=1,
    )
)
