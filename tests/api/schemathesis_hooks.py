"""What schemathesis checks besides its own checks; see schemathesis.toml."""

import schemathesis


@schemathesis.check
def only_weights_and_dagster_may_be_missing(ctx, response, case):
    """A 503 for another reason, such as a database that stumbled over a value, is a mistake of ours."""
    if response.status_code == 503:
        detail = response.json()["detail"]
        assert detail.startswith(("The weights of the model", "Dagster's webserver does not answer")), detail
