"""What trains: runs the user's script through SageMaker's training toolkit.

sagemaker-training calls main() because SAGEMAKER_TRAINING_MODULE names it. On an error the toolkit
writes /opt/ml/output/failure; without us that would not say what the script wrote to stderr.
"""
import os
import subprocess
import tempfile

from sagemaker_training import entry_point, environment, errors

TAIL = 16384  # bytes of stderr that the failure file keeps


def main():
    """Run the entry point as a process; an error carries the end of its stderr.

    The toolkit's own capture_error keeps only some lines (the name of an exception and what
    follows, but no traceback and no message of sys.exit), and cuts up the live log.
    """
    env = environment.Environment()
    with tempfile.NamedTemporaryFile() as copy:
        tee = subprocess.Popen(['tee', copy.name], stdin=subprocess.PIPE, stdout=2)
        stderr = os.dup(2)
        os.dup2(tee.stdin.fileno(), 2)
        try:
            entry_point.run(env.module_dir, env.user_entry_point, env.to_cmd_args(),
                            env.to_env_vars())
        except errors.ExecuteUserScriptError as e:
            os.dup2(stderr, 2)
            tee.communicate()
            e.output = copy.read()[-TAIL:].decode('utf-8', 'replace')
            raise
        finally:
            os.dup2(stderr, 2)
