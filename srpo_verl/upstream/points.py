"""Every name of veRL that this package overrides or relies on. Data; fingerprints.json beside it has their sources."""

from __future__ import annotations

_TRAINER, _SYNC = "verl.trainer.ppo.v1.trainer_base:PPOTrainer", "verl.trainer.ppo.v1.trainer_sync:PPOTrainerSync"
_WORKERS, _FSDP = "verl.workers.engine_workers", "verl.workers.engine.fsdp.transformer_impl"
_PLATFORM, _BUFFER = (
    "verl.plugin.platform.platform_base:PlatformBase",
    "verl.trainer.ppo.v1.replay_buffer:ReplayBuffer",
)
_LOOPS, _AGENTS = "verl.trainer.ppo.v1.agent_loop_tq", "verl.experimental.agent_loop"
_NO_STOCK = "none; veRL's own forward-only engines stream parameters from the CPU at every layer"
_BUDGET = "wall-clock budgets: the clock, the best accuracy, the last step that fits"
_STALL = "a run that hangs ends"
_GUARDS = "guards, and the stop with a checkpoint that they or a person ask for"
_TAKES_OVER = "veRL's adapter is abstract here"

OVERRIDDEN: dict[str, dict[str, str]] = {
    "srpo_verl.verl_ext.trainer:SrpoTrainer": {
        f"{_TRAINER}.__init__": "checks the configuration; sets the mode to `sync`, because veRL takes every other "
        "name for asynchronous; hands the `srpo` group to the workers, which get `actor_rollout_ref` only",
        f"{_TRAINER}._init_tokenizer": "checks what depends on the model; makes the router with the prompt builder of "
        "veRL's agent loops",
        f"{_TRAINER}._init_resource_pool_mgr": "names `SrpoWorker`",
        f"{_TRAINER}._balance_batch": "routes before the rows are balanced; on one rank there is nothing to balance",
        f"{_TRAINER}._init_dataloader": "checks the column of reference solutions",
        f"{_TRAINER}._compute_old_log_prob": "asks for the support; workers fetch tensors only",
        f"{_TRAINER}._compute_ref_log_prob": "workers fetch tensors only",
        f"{_TRAINER}._compute_advantage": "advantages of the routing",
        f"{_TRAINER}.on_train_begin": "writes the run's record beside its log; keeps what is there "
        "by then out of garbage collections",
        f"{_TRAINER}._update_actor": "tells the workers whether any row is distilled; renames metrics; writes "
        "the token sample",
    },
    "srpo_verl.verl_ext.clock:TimedTrainer": {
        f"{_TRAINER}.__init__": "starts the clock",
        f"{_TRAINER}.on_train_begin": _BUDGET,
        f"{_TRAINER}.on_step_begin": _BUDGET,
        f"{_SYNC}.on_step_end": _BUDGET,
        f"{_TRAINER}._validate": _BUDGET,
        f"{_TRAINER}._compute_metrics": _BUDGET,
        f"{_TRAINER}._save_checkpoint": "the clock and the validations so far",
        f"{_TRAINER}._load_checkpoint": "the clock and the validations so far",
    },
    "srpo_verl.verl_ext.guarded:GuardedTrainer": {
        f"{_TRAINER}.__init__": "the guards",
        f"{_TRAINER}.fit": "keeps the log of an earlier attempt; a stopped run says so with its exit status",
        f"{_SYNC}.on_step_end": _GUARDS,
        f"{_TRAINER}._compute_metrics": _GUARDS,
        f"{_TRAINER}.on_step_begin": _STALL,
        f"{_SYNC}.on_sample_end": _STALL,
        f"{_TRAINER}.on_validate_begin": _STALL,
        f"{_TRAINER}._validate": "the accuracy of a checkpoint",
        f"{_TRAINER}._save_checkpoint": "what the guards have seen; which checkpoints are whole, and which stay",
        f"{_TRAINER}._load_checkpoint": "what the guards have seen; what a killed run has left is removed",
    },
    "srpo_verl.verl_ext.worker:SrpoWorker": {
        f"{_WORKERS}:ActorRolloutRefWorker.init_model": "loss, teacher",
        f"{_WORKERS}:ActorRolloutRefWorker.update_actor": "teacher pass before, EMA after",
        f"{_WORKERS}:ActorRolloutRefWorker.save_checkpoint": "the teacher",
        f"{_WORKERS}:ActorRolloutRefWorker.load_checkpoint": "the teacher",
    },
    "srpo_verl.verl_ext.worker:SrpoTrainingWorker": {
        f"{_WORKERS}:TrainingWorker.__init__": "the engine type and the settings of its engine; the reference's "
        "worker beside it stays veRL's",
        f"{_WORKERS}:TrainingWorker.train_batch": "counts and the weights of eq. (4) before the mini-batch",
    },
    "srpo_verl.verl_ext.engine:SrpoEngine": {
        f"{_FSDP}:FSDPEngine.__init__": "takes its settings; restores the model type that veRL's module builder knows",
        f"{_FSDP}:FSDPEngineWithLMHead.prepare_model_inputs": "keeps prompts and padding from the projection",
        f"{_FSDP}:FSDPEngineWithLMHead.prepare_model_outputs": "the only place where logits exist: log-probs, "
        "entropy, support, divergence, teacher scores; what only veRL computes (its fused kernels, sum of squared "
        "probabilities) is left to it",
    },
    "srpo_verl.verl_ext.engine:SrpoTeacherEngine": {
        f"{_FSDP}:FSDPEngine.{name}": _NO_STOCK for name in ("_build_optimizer", "_build_lr_scheduler")
    },
    "srpo_verl.cpu.replay_buffer:FastReplayBuffer": {
        f"{_BUFFER}.__init__": "refuses asynchronous modes",
        f"{_BUFFER}.sample": "an agent-loop worker that failed raises here",
        f"{_BUFFER}._wait_for_next_poll": "waits instead of polling",
        f"{_BUFFER}._select_prompt_uids": "oldest prompts first",
        f"{_BUFFER}._materialize_batch": "prompts and sessions in a fixed order",
    },
    "srpo_verl.cpu.agent_loop:SeededAgentLoopManager": {
        f"{_LOOPS}:AgentLoopManagerTQ.__init__": "replaces the worker class",
        f"{_LOOPS}:AgentLoopManagerTQ.generate_sequences": "a whole batch at a time",
    },
    "srpo_verl.cpu.agent_loop:_BatchWorker": {
        f"{_LOOPS}:AgentLoopWorkerTQ.__init__": "agent loops ask in rounds",
        f"{_LOOPS}:AgentLoopWorkerTQ.generate_sequences": "samples, scores and stores a whole batch",
        f"{_LOOPS}:AgentLoopWorkerTQ._run_prompt": "takes note of a row; the sessions run together",
        f"{_LOOPS}:AgentLoopWorkerTQ._agent_loop_postprocess": "outputs are stored with the batch",
        f"{_AGENTS}.agent_loop:AgentLoopWorker._run_agent_loop": "adds the session's seed",
    },
    "srpo_verl.cpu.agent_loop:_SingleTurn": {
        f"{_AGENTS}.single_turn_agent_loop:SingleTurnAgentLoop.__init__": "one loop serves all sessions",
        f"{_AGENTS}.agent_loop:AgentLoopBase.ct_build_initial_tokens": "a prompt is rendered once",
    },
    "srpo_verl.cpu.rounds:RoundClient": {
        f"verl.workers.rollout.llm_server:LLMServerClient.{name}": "inside a session it asks in rounds"
        for name in ("__init__", "generate")
    },
    "srpo_verl.cpu.rollout:HFReplica": {
        "verl.workers.rollout.replica:RolloutReplica.launch_servers": _TAKES_OVER,
    },
    "srpo_verl.cpu.rollout:HFServerAdapter": {
        f"verl.workers.rollout.base:BaseRollout.{name}": _TAKES_OVER
        for name in ("__init__", "resume", "release", "update_weights")
    },
    "srpo_verl.cpu.platform:PlatformCPU": {
        f"{_PLATFORM}.{name}": "the interface of a platform"
        for name in (
            *("device_name", "vendor_name", "device_module", "is_available", "current_device", "device_count"),
            *("set_device", "synchronize", "manual_seed", "manual_seed_all", "set_allocator_settings", "empty_cache"),
            *("get_device_capability", "communication_backend_name", "visible_devices_envvar", "nvtx_range"),
            *(
                "profiler_start",
                "profiler_stop",
                "ray_resource_name",
                "ray_noset_envvars",
                "is_ipc_supported",
                "cudart",
            ),
        )
    },
}
"""Class of ours -> veRL's method that it replaces or extends -> why."""

RELIED_ON: dict[str, str] = {
    # how a run starts, and what of ours it finds
    "verl:_plugins_policy": "which entry points veRL loads (installation.is_loaded_under)",
    "verl.trainer.main_ppo:main": "Hydra callbacks run before it; it adapts trainer.device to the platform",
    "verl.trainer.main_ppo:run_ppo": "hands ray_init.runtime_env to every process of the run",
    "verl.trainer.main_ppo:TaskRunnerV1.run": "picks the trainer by trainer.v1.trainer_mode",
    "verl.utils.device:auto_set_device": "leaves trainer.device=cpu alone where the platform is the CPU",
    "verl.trainer.ppo.core_algos:ADV_ESTIMATOR_REGISTRY": "registered: the estimator",
    "verl.trainer.ppo.core_algos:POLICY_LOSS_REGISTRY": "registered: the policy loss",
    "verl.trainer.ppo.v1.trainer_base:TRAINER_REGISTRY": "registered: the trainer",
    "verl.workers.engine.base:EngineRegistry._engines": "registered: both engines",
    "verl.workers.engine.base:EngineRegistry.register": "registers the engines",
    "verl.workers.engine.base:EngineRegistry.get_engine_cls": "picks the engine by type, strategy, device and vendor",
    "verl.workers.engine.base:EngineRegistry.new": "hands the engine its settings",
    # a step
    f"{_TRAINER}._step_once": "order of a step: balance, old log-probs, advantage, update",
    f"{_TRAINER}._get_required_batch_multiple": "how many rows a batch is filled up to",
    f"{_TRAINER}.fit": "order of steps, checkpoints, validations; hooks; total_training_steps",
    f"{_TRAINER}._build_replay_buffer": "compares the mode with sync",
    f"{_TRAINER}._setup": "makes the worker group, which is asked for the token sample",
    "verl.trainer.ppo.v1.utils:compute_advantage_for_multi_trajectories": "the path of an estimator that is not grpo",
    "verl.trainer.ppo.ray_trainer:compute_advantage": "arguments of an estimator",
    f"{_WORKERS}:ActorRolloutRefWorker.loss_fn": "its keyword `config` is the actor's configuration",
    f"{_WORKERS}:ActorRolloutRefWorker.compute_log_prob": "the pass that also returns the support",
    f"{_WORKERS}:ActorRolloutRefWorker.compute_ref_log_prob": "the KL reference",
    f"{_WORKERS}:TrainingWorker.train_mini_batch": "mini-batches, their token counts, aggregation of metrics",
    f"{_WORKERS}:TrainingWorker.infer_batch": "the pass over old log-probs",
    f"{_FSDP}:FSDPEngine.forward_backward_batch": "cuts micro-batches, sums losses, averages over ranks",
    f"{_FSDP}:FSDPEngineWithLMHead.forward_step": "calls inputs, model, outputs and the loss",
    f"{_FSDP}:FSDPEngine._build_fsdp_module": "sharding of student and teacher; what two shims work around",
    f"{_FSDP}:FSDPEngine.get_per_tensor_param": "what is sent to the rollout engine",
    "verl.utils.tracking:FileLogger.__init__": "where the log is, which is emptied; record and samples lie beside",
    "verl.utils.checkpoint.checkpoint_manager:find_latest_ckpt_path": "the file that names the latest checkpoint",
    f"{_WORKERS}:ActorRolloutRefWorker.__init__": "the worker's configuration",
    f"{_WORKERS}:ActorRolloutRefWorker.actor_worker_cls": "replaced: the class of the actor inside the worker",
    f"{_FSDP}:FSDPEngine._build_model_optimizer": "the sharded module, and the optimizer's absence",
    "verl.workers.utils.losses:ppo_loss": "SrpoLoss computes the same terms under the same names",
    # the CPU platform
    "verl.plugin.platform.platform_manager:_current_platform": "the chosen platform, replaced by cpu.activate()",
    "verl.plugin.platform.platform_manager:get_platform": "reads VERL_PLATFORM, once",
    "verl.plugin.platform.platform_manager:_detect_platform_name": "reads VERL_PLATFORM",
    f"{_FSDP}:device_name": "patched by cpu/shims.py",
    f"{_AGENTS}.agent_loop:AgentLoopManager._init_agent_loop_workers": "the workers that a batch is sent to",
    f"{_AGENTS}.agent_loop:AgentLoopWorker.__init__": "tokenizer, processor, client and reward handles of a session",
    **{
        f"{_AGENTS}.agent_loop:AgentLoopWorker.{name}": "a row's output is finished by veRL's own parts"
        for name in (
            "_compute_multi_modal_inputs",
            "_compute_position_ids",
            "_compute_score",
            "_compute_teacher_logprobs",
        )
    },
    f"{_AGENTS}.agent_loop:AgentLoopBase.__init__": "processor and tokenizer of a loop",
    "verl.workers.rollout.replica:RolloutReplica.__init__": "configuration, model and rank of a replica",
    "verl.workers.rollout.replica:RolloutReplica.max_concurrency": "calls that a server takes at a time",
    "verl.utils.distributed:initialize_global_process_group_ray": "patched by cpu/shims.py",
    "verl.workers.rollout.base:_ROLLOUT_REGISTRY": "registered: the rollout engine hf",
    "verl.workers.rollout.replica:RolloutReplicaRegistry.register": "registered: the rollout engine hf",
}
"""Name of veRL -> what for: attributes, order and arguments that no import statement shows."""

IMPORTED: tuple[str, ...] = (
    "verl.experimental.agent_loop.agent_loop:DictConfigWrap",
    "verl.experimental.agent_loop.agent_loop:_agent_loop_registry",
    "verl.experimental.agent_loop.single_turn_agent_loop:SingleTurnAgentLoop",
    "verl.experimental.agent_loop:AgentLoopOutput",
    "verl.model_merger.base_model_merger:ModelMergerConfig",
    "verl.model_merger.fsdp_model_merger:FSDPModelMerger",
    "verl.plugin.platform.platform_manager:_current_platform",
    "verl.plugin.platform:PlatformBase",
    "verl.plugin.platform:PlatformRegistry",
    "verl.plugin.platform:set_platform",
    "verl.single_controller.base.decorator:Dispatch",
    "verl.single_controller.base.decorator:make_nd_compute_dataproto_dispatch_fn",
    "verl.single_controller.base.decorator:register",
    "verl.tools.tool_registry:load_all_tools",
    "verl.trainer.config:CheckpointConfig",
    "verl.trainer.ppo.core_algos:get_adv_estimator_fn",
    "verl.trainer.ppo.core_algos:get_policy_loss_fn",
    "verl.trainer.ppo.core_algos:kl_penalty",
    "verl.trainer.ppo.core_algos:register_adv_est",
    "verl.trainer.ppo.core_algos:register_policy_loss",
    "verl.trainer.ppo.padding_utils:upsample_batch_to_divisible_size",
    "verl.trainer.ppo.utils:Role",
    "verl.trainer.ppo.utils:need_critic",
    "verl.trainer.ppo.utils:need_reference_policy",
    "verl.trainer.ppo.v1.agent_loop_tq:AgentLoopManagerTQ",
    "verl.trainer.ppo.v1.agent_loop_tq:AgentLoopWorkerTQ",
    "verl.trainer.ppo.v1.agent_loop_tq:apply_greedy_sampling_params",
    "verl.trainer.ppo.v1.replay_buffer:ReplayBuffer",
    "verl.trainer.ppo.v1.trainer_base:register_trainer",
    "verl.trainer.ppo.v1.trainer_sync:PPOTrainerSync",
    "verl.trainer.ppo.v1:get_trainer_cls",
    "verl.utils.config:omega_conf_to_dataclass",
    "verl.utils.config:validate_config",
    "verl.utils.debug:marked_timer",
    "verl.utils.device:get_device_id",
    "verl.utils.device:get_device_name",
    "verl.utils.device:get_torch_device",
    "verl.utils.fsdp_utils:FSDPModule",
    "verl.utils.import_utils:load_extern_object",
    "verl.utils.import_utils:resolve_config_path",
    "verl.utils.memory_utils:aggressive_empty_cache",
    "verl.utils.metric:AggregationType",
    "verl.utils.metric:Metric",
    "verl.utils.profiler:simple_timer",
    "verl.utils.rollout_trace:rollout_trace_attr",
    "verl.utils.rollout_trace:rollout_trace_op",
    "verl.utils.seqlen_balancing:log_seqlen_unbalance",
    "verl.utils.tensordict_utils:assign_non_tensor",
    "verl.utils.tensordict_utils:get",
    "verl.utils.tensordict_utils:get_non_tensor_data",
    "verl.utils.tensordict_utils:get_tensordict",
    "verl.utils.tensordict_utils:list_of_dict_to_tensordict",
    "verl.utils.tokenizer.continuous_token_wiring:create_continuous_token_builder",
    "verl.utils.torch_dtypes:PrecisionType",
    "verl.utils.torch_functional:masked_sum",
    "verl.utils.tracking:Tracking",
    "verl.utils.ulysses:gather_outputs_and_unpad",
    "verl.utils.ulysses:get_ulysses_sequence_parallel_group",
    "verl.utils.ulysses:get_ulysses_sequence_parallel_rank",
    "verl.utils:normalize_token_ids",
    "verl.workers.config:ActorConfig",
    "verl.workers.config:FSDPEngineConfig",
    "verl.workers.config:HFModelConfig",
    "verl.workers.config:RolloutConfig",
    "verl.workers.config:TrainingWorkerConfig",
    "verl.workers.engine.base:EngineRegistry",
    "verl.workers.engine.fsdp.transformer_impl:FSDPEngineWithLMHead",
    "verl.workers.engine:EngineRegistry",
    "verl.workers.engine_workers:ActorRolloutRefWorker",
    "verl.workers.engine_workers:TrainingWorker",
    "verl.workers.rollout.base:BaseRollout",
    "verl.workers.rollout.llm_server:LLMServerClient",
    "verl.workers.rollout.replica:RolloutReplica",
    "verl.workers.rollout.replica:TokenOutput",
    "verl.workers.utils.padding:no_padding_2_padding",
    "verl:DataProto",
)
"""Names that the adapters import: their arguments and what they return."""
