"""A filtered corpus put on the hub: its files as they are, private unless said otherwise."""

from pathlib import Path
from typing import Any

from memaudit.errors import OutputError, UsageError
from memaudit.text import safe_text


def push_to_hub(out: Path, name: str, *, is_public: bool = False, api: Any = None) -> str:
    """Upload a file or a folder as a dataset and return its id.

    A repository that exists and is public is refused unless that is asked for: it would publish
    the corpus.

    Args:
        out: what to upload.
        name: `owner/name` on the hub.
        is_public: whether everybody may read it.
        api: a `huggingface_hub.HfApi`; None: with the token of this machine.

    Raises:
        UsageError: the repository is public and that was not asked for.
        OutputError: the hub refuses or cannot be reached.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    api = api or HfApi()
    where: dict[str, Any] = {"repo_id": name, "repo_type": "dataset"}
    try:
        api.create_repo(**where, private=not is_public, exist_ok=True)
        if not is_public and not api.repo_info(**where).private:
            raise UsageError(
                f"{safe_text(name)}: is public on the hub, and --public was not given",
                hint="choose another name, or say --public if everybody may read the corpus",
            )
        if out.is_dir():
            api.upload_folder(**where, folder_path=str(out))
        else:
            api.upload_file(**where, path_or_fileobj=str(out), path_in_repo=out.name)
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise OutputError(
            f"{safe_text(name)}: cannot be uploaded: {type(error).__name__}",
            hint="check the name and the connection, and log in with: hf auth login",
        ) from error
    return name
