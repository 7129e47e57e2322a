"""``fedsam_site_kit``: the start-up kit of a federation between real machines."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from fedsam_pipeline.entrypoints.command import command_parser, run_command
from fedsam_pipeline.model.registry import BASE_MODELS, DEFAULT_BASE_MODEL


def build_parser() -> argparse.ArgumentParser:
    """The flags of ``fedsam_site_kit``."""
    parser = command_parser("fedsam_site_kit", "Keys, certificates and start-up files of a federation. docs/deploy.md goes through it.")
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")

    def add(name: str, help_text: str) -> argparse.ArgumentParser:
        text = f"{help_text[0].upper()}{help_text[1:]}."
        return actions.add_parser(name, help=help_text, description=text, formatter_class=argparse.ArgumentDefaultsHelpFormatter)

    init = add("init", "make the kit: a folder for the server, one for each site, and the certificate authority")
    init.add_argument("--sites", required=True, metavar="A,B,C", help="names of the sites, as in dataset.json or site.toml")
    init.add_argument("--server", required=True, metavar="HOST:PORT", help="where all sites reach the server")
    init.add_argument("--also", nargs="+", default=[], metavar="HOST", help="other names and addresses of the server, for its certificate")
    init.add_argument("--federation", default="fedsam", metavar="NAME", help="its name, and that of Flower's connection to it")
    init.add_argument("-m", dest="base_model", metavar="MODEL", default=DEFAULT_BASE_MODEL, help=f"base model: {', '.join(BASE_MODELS)}")
    init.add_argument("-o", dest="output", type=Path, metavar="FOLDER", default=Path("fedsam_kit"), help="the new folder")
    init.add_argument("--user", metavar="NAME", help="runs the services, until place says otherwise (default: the present user)")
    init.add_argument("--keys_at_site", action="store_true", help="make no site's private key here: fedsam_site_kit key does at the site")
    init.add_argument(
        "--wheelhouse",
        type=Path,
        nargs="?",
        const=Path("requirements.lock"),
        metavar="LOCK",
        help="add a folder to install from without internet: wheels of LOCK (default: requirements.lock here), our own, the weights",
    )
    place = add("place", "write a folder's start-up files for where it lies now, and for this Python environment")
    place.add_argument("folder", type=Path, metavar="FOLDER", help="the server's or a site's")
    place.add_argument("--data", type=Path, metavar="FOLDER", help="holds raw, preprocessed, results and cache (default: data in FOLDER)")
    place.add_argument("--user", metavar="NAME", help="runs the service (default: the present user)")
    key = add("key", "make a site's key at the site, and print the public line to send to the server's operator")
    key.add_argument("folder", type=Path, metavar="FOLDER", help="the site's")
    encrypt = add("encrypt", "give a site the key that all sites share for encrypted sums; the first one makes it")
    encrypt.add_argument("folder", type=Path, metavar="FOLDER", help="the site's")
    encrypt.add_argument("--key", type=Path, metavar="FILE", help="the key of another site (default: make a new one)")
    renew = add("renew", "make the server's next certificate, for the same key and names")
    renew.add_argument("folder", type=Path, metavar="KIT", help="the whole kit, with ca/ and server/")
    renew.add_argument("--also", nargs="+", default=[], metavar="HOST", help="more names and addresses of the server")
    sign = add("sign", "sign the app of the installed version, where a new version has changed it")
    sign.add_argument("folder", type=Path, metavar="KIT", help="the whole kit, with ca/ and server/")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""

    def body(arguments: argparse.Namespace) -> None:
        from fedsam_pipeline.pipeline import site_kit

        if arguments.action == "init":
            site_kit.init(
                federation=arguments.federation,
                sites=arguments.sites,
                server=arguments.server,
                also=arguments.also,
                base_model=arguments.base_model,
                folder=arguments.output,
                keys_at_site=arguments.keys_at_site,
                user=arguments.user,
                lock=arguments.wheelhouse,
            )
        elif arguments.action == "place":
            site_kit.place(arguments.folder, arguments.data, arguments.user)
        elif arguments.action == "key":
            site_kit.key(arguments.folder)
        elif arguments.action == "encrypt":
            site_kit.encrypt(arguments.folder, arguments.key)
        elif arguments.action == "renew":
            site_kit.renew(arguments.folder, arguments.also)
        else:
            site_kit.sign(arguments.folder)

    return run_command(build_parser(), body, argv)
