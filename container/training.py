"""What trains: runs the user's script through SageMaker's training toolkit.

sagemaker-training calls main() because SAGEMAKER_TRAINING_MODULE names it; alone, the toolkit
would leave the script's traceback out of /opt/ml/output/failure.
"""
from sagemaker_training import entry_point, environment


def main():
    """Run the entry point as a process; an error carries what the script wrote to stderr."""
    env = environment.Environment()
    entry_point.run(env.module_dir, env.user_entry_point, env.to_cmd_args(), env.to_env_vars(),
                    capture_error=True)
