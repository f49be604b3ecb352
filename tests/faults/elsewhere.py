"""The public names that test_inputs.py does not call, each under the reason: the test that does it, or why there is nothing to do."""

ELSEWHERE: dict[str, str] = {
    "values that cannot be wrong: errors, protocols, and records that the package itself fills": """
        checkpoint.Checkpoint data.datasets.DataSet data.images.ImageFile data.images.ImageFolder data.shards.Plan
        data.shards.ShardFacts data.toy.Toy distributed.World errors.CFMError errors.CheckpointCorruptError errors.CheckpointError
        errors.ConfigError errors.DataError errors.DiskFullError errors.DistributedError errors.DivergenceError
        errors.ResumeMismatchError errors.UntrustedFileError   guidance.Guided
        judges.JudgeSettings paths.FlowSample paths.Path runs.Run scale.budget.Split scale.dry_run.Made scale.features.Extractor
        scale.features.Features scale.sample.Settings scale.train.Options steps.Grid terms.Draw terms.Evaluated terms.Term
        viz.animation.Film viz.results.Metric viz.style.MethodStyle viz.style.Picture
        scale.sample.Trained samplers.Evaluations scale.reference.Reference scale.reference.Statistics
    """,
    "the command line, whose arguments test_cli_fuzz.py writes": """
        arguments.Common arguments.FullScale arguments.show cli.Compare cli.Demo cli.Evaluate cli.Prepare cli.Sample cli.Train
        cli.main commands.compare_suite commands.evaluate_file commands.picture commands.sample_run demo.demo demo.table
        scale.sample.drawing scale.budget.activation_bytes scale.budget.free_memory scale.budget.split_batch scale.budget.state_bytes
        scale.commands.evaluate_command scale.commands.prepare_command scale.commands.sample_command scale.commands.train_command
        terminal.Notes terminal.run_command
        scale.dry_run.dry_run scale.evaluate.evaluate_samples scale.evaluate.features_of scale.evaluate.image_batches
        card.card_of card.method_name card.told scale.reference.names_in scale.reference.statistics_of
        scale.features.StandIn scale.features.inception scale.features.open_extractor scale.sample.sample_imagenet
        scale.train.read_about scale.train.train_imagenet
        cli.Export scale.budget.peak_bytes scale.commands.features_command scale.official.export_run
        scale.official.is_file_of_weights scale.official.open_any scale.official.start_from scale.sample.open_run
        scale.sample.count_samples scale.sample.run_of places.check_file places.check_folder places.check_suffix places.expanded
        places.inside recipes.reads.check_read recipes.reads.unread runs.home_for runs.samples_of arguments.names_of
    """,
    "files and folders, which the tests of data, checkpoints, runs and official weights damage": """
        checkpoint.check_storable checkpoint.exists checkpoint.latest checkpoint.load checkpoint.once checkpoint.ordered checkpoint.save
        checkpoint.write_bytes
        data.archive.samples data.archive.unpack
        data.archive.unpacked data.codec.Codec data.codec.Scaling data.codec.open_codec data.codec.tiny_vae
        data.images.centre_crop data.images.decode data.images.find data.images.flat data.images.layout data.images.load data.images.read
        data.images.opened data.archive.is_archive data.archive.is_hidden data.shared.in_turn data.batches.fitting
        data.latents.Latents data.latents.prefetch
        data.mnist.available data.mnist.download data.mnist.load data.prepare.plan_of data.prepare.prepare data.root.checkout
        data.root.damaged data.root.data_root data.root.missing data.root.publish data.root.read_file data.root.read_gzip
        data.shards.digest_file data.shards.is_done data.shards.map_shard data.shards.open_plan data.shards.read_index
        data.shards.write_index data.shards.write_shard distributed.joined distributed.ranks_of_environment judges.Judge
        judges.assess judges.frechet_real judges.judge_for judges.load_judge judges.real_halves judges.save_judge
        judges.train_judge lazy.optional models.encoders.Encoder models.encoders.teacher models.official.export_official
        models.official.read_weights pretrained.folder pretrained.make runs.facts runs.goes_on runs.load_model runs.peak_memory runs.train
        runs.write_json viz.animation.save_animation viz.style.save
        runs.Located runs.located runs.saved_recipe
        data.cifar10.available data.cifar10.download data.cifar10.load data.pca.PCA data.shards.ask_for data.shards.check_hash
        data.shards.hash_of data.shards.read_json data.shards.write data.teacher_features.TeacherFeatures
        data.teacher_features.encode_features
        data.datasets.codec_for data.root.keep data.root.scratch pretrained.load teachers.teacher_for
    """,
    "parts inside a network, a loss or a solver, whose caller has checked their arguments": """
        metrics.check_covariance
        kernels.attract_repel kernels.cosine kernels.gram kernels.inverse_root kernels.root kernels.standardize
        models.embed.autocasting models.embed.in_float32
        models.embed.LabelEmbedder models.embed.TimestepEmbedder models.embed.check_blocks models.embed.check_input
        models.embed.sincos_1d models.embed.sincos_2d models.embed.time_frequencies models.mlp.ResidualBlock models.sit.Attention
        models.sit.FeedForward models.sit.FinalLayer models.sit.PatchEmbed models.sit.SiTBlock models.sit.attend
        models.sit.modulate perturbations.other_row steps.check_finite steps.euler steps.fitting steps.heun steps.midpoint
        steps.rk4 terms.Alignment terms.noise_like
        sharded.full sharded.is_sharded sharded.load_optimizer sharded.load_weights sharded.optimizer_state sharded.shard
        sharded.weights throughput.Clock throughput.peak_flops throughput.train_flops throughput.utilisation
        segments.check_same_data segments.check_same_recipe segments.new_config segments.note_on_schedule
        compiled.blocks_of compiled.compile_parts compiled.is_compiled compiled.unsplit
    """,
    "the contract of one's own network: tests/test_own_network.py and test_trainable.py give it wrong ones": """
        networks.as_features networks.as_velocity_of networks.check_keywords networks.check_model networks.check_trainable networks.copied
        networks.takes networks.evaluating networks.explained networks.has_null networks.needs_labels networks.takes_labels
        training.Running
    """,
    "what needs a trained run or a teacher: tests/test_experiments.py, test_imagenet.py, test_recipes.py": """
            objective.repa
        recipes.imagenet.build_imagenet_model recipes.imagenet.build_imagenet_trainer recipes.recipe.build_model
        recipes.recipe.build_objective recipes.recipe.build_trainer recipes.recipe.from_dict
        recipes.imagenet.Given teachers.SmallTeacher teachers.Tokens teachers.train_teacher
        recipes.imagenet.preset_of experiments.measures.reference_rows
    """,
    "answers of a learner: tests/test_course.py gives right and wrong ones": """
        course.check course.exercise course.exercises course.nb00_tour.move_by_hand course.nb00_tour.what_weight_does
        course.nb00_tour.which_end course.nb01_paths.find_the_bug course.nb01_paths.slow_start course.nb01_paths.two_ends
        course.nb01_paths.who_goes_down course.nb02_flow_matching.floor_by_hand course.nb02_flow_matching.how_long
        course.nb02_flow_matching.mean_or_median course.nb02_flow_matching.repaired_coupling
        course.nb03_trajectory_drift.blind_spot course.nb03_trajectory_drift.forgotten course.nb03_trajectory_drift.landing
        course.nb03_trajectory_drift.shortfall course.nb03_trajectory_drift.split_errors
        course.nb04_contrastive_flow_matching.best_velocity course.nb04_contrastive_flow_matching.gap_factor
        course.nb04_contrastive_flow_matching.lowest_loss course.nb04_contrastive_flow_matching.mean_of_other_class
        course.nb04_contrastive_flow_matching.undo course.nb05_vecor.equal_settings course.nb05_vecor.gain_of_shuffles
        course.nb05_vecor.latent_negative course.nb05_vecor.noise_share course.nb06_dispersive.cosine_floor
        course.nb06_dispersive.covariance_floor course.nb06_dispersive.free_of_charge course.nb06_dispersive.same_loss
        course.nb06_dispersive.verdict course.nb07_sampling_and_guidance.control_share
        course.nb07_sampling_and_guidance.last_step_factor course.nb07_sampling_and_guidance.mirrored_interval
        course.nb07_sampling_and_guidance.repelled_scale course.nb07_sampling_and_guidance.sign_trap course.nb08_images.copies
        course.nb08_images.few_steps course.nb08_images.repaired_gap course.nb08_images.sign_flips
        course.nb08_images.three_verdicts course.nb09_sit.block_parameters course.nb09_sit.first_loss course.nb09_sit.paste
        course.nb09_sit.repair course.nb09_sit.to_our_interval course.nb10_imagenet_full_scale.accumulation
        course.nb10_imagenet_full_scale.days course.nb10_imagenet_full_scale.memory course.photographs.photographs course.results
        course.say course.show
    """,
    "figures: tests/test_viz*.py give each of them wrong shapes, NaN and nothing": """
        viz.animation.film viz.animation.frames viz.artists.arrow_key viz.artists.arrows viz.artists.bottom_legend
        viz.artists.color_bar viz.artists.contours viz.artists.legend_entry viz.artists.paths viz.artists.plane viz.artists.points
        viz.artists.side_legend viz.artists.square_limits viz.artists.squares viz.artists.velocity_field
        viz.coverage.neighbourhoods viz.errors.curves viz.errors.plane_maps viz.exact.fields_figure viz.features.feature_maps
        viz.features.paired_differences viz.features.profiles viz.features.similarity_maps viz.features.spreading
        viz.fields.field_error viz.fields.point_samples viz.fields.trajectories viz.fields.velocity_fields
        viz.marginals.conditional_velocities viz.marginals.path_coefficients viz.marginals.scalar_maps viz.marginals.snapshots
        viz.marginals.spacetime viz.matching.pairings viz.matching.regression_slice viz.pictures.image_grid
        viz.pictures.perturbation_gallery viz.repulsion.attract_repel viz.repulsion.channel_stems viz.repulsion.class_paths
        viz.repulsion.loss_bowls viz.repulsion.negative_distances viz.results.heatmap viz.results.method_bars
        viz.results.quality_vs_steps viz.results.training_curves viz.style.as_array viz.style.as_tensor viz.style.frame
        viz.style.new_figure viz.style.panels viz.style.styled viz.style.text_width viz.style.to_png viz.tokens.table_map
        viz.tokens.token_maps
    """,
    "explorers: tests/test_widgets.py moves every slider to its ends": """
        widgets.divergence.divergence widgets.exact_field.exact_field widgets.explorer.Canvas widgets.explorer.Explorer
        widgets.explorer.choice widgets.explorer.play_for widgets.explorer.slider widgets.features.features
        widgets.guidance.guidance widgets.scenes.exact widgets.scenes.excess widgets.scenes.field widgets.scenes.labelled
        widgets.scenes.start widgets.trajectories.trajectories widgets.wrong_velocities.wrong_velocities
        widgets.scenes.two_classes widgets.scenes.typical
    """,
    "the lab: records, jobs and sentences, which test_sweep.py, test_experiments.py, test_diagnostics.py and others make": """
        commands.report_suite commands.time_steps experiments.ablations.ablations experiments.ablations.values
        experiments.answers.Answer experiments.answers.absent experiments.answers.by_method experiments.answers.by_suite
        experiments.answers.capital experiments.answers.clause experiments.answers.items experiments.answers.least
        experiments.answers.listed experiments.answers.quality_panel experiments.answers.rows_figure experiments.answers.sentence
        experiments.answers.setting experiments.answers.spoken experiments.answers.title experiments.answers.where experiments.arms.Arm
        experiments.arms.balanced_labels experiments.arms.draw_samples experiments.arms.noise_of experiments.arms.trained_recipe
        experiments.arms.velocity experiments.benefits.curves_by_field experiments.benefits.curves_by_nfe
        experiments.benefits.debiasing experiments.benefits.diversity experiments.benefits.gains experiments.claims.Claim
        experiments.claims.beside experiments.controls.Shares experiments.controls.controls experiments.controls.shares
        experiments.costs.training_costs experiments.diagnostics.field_values experiments.diagnostics.path_values
        experiments.groups.Group experiments.groups.Suite experiments.groups.euler experiments.jobs.Job experiments.jobs.Trial
        experiments.jobs.estimate experiments.jobs.jobs_of experiments.jobs.key_of experiments.jobs.run_job
        experiments.measures.Sampling experiments.measures.field_rows experiments.measures.judge_of experiments.measures.measure
        experiments.measures.row_base experiments.measures.rows_of experiments.measures.sample_rows
        experiments.mechanisms.counterparts experiments.mechanisms.interference experiments.mechanisms.norms
        experiments.mechanisms.perturbations experiments.readme.quality_figure experiments.readme.write_report
        experiments.results.Place experiments.results.Results experiments.results.percent experiments.results.said_of
        experiments.results.tell experiments.statistics.Difference experiments.statistics.paired_difference
        experiments.store.Store experiments.store.read_json experiments.store.write_rows experiments.suites.trials
        experiments.sweep.Plan experiments.sweep.compare experiments.sweep.plan experiments.tuning.settings
        experiments.workers.Outcome experiments.workers.in_process experiments.workers.in_workers viz.lab.Panel
        viz.lab.difference_curves viz.lab.difference_rows viz.lab.difference_scatter
    """,
    "files of others, which test_data.py, test_data_changes.py, test_downloads.py and test_security.py damage": """
        data.archive.read_to_end data.root.impatient data.shards.parse_npy data.shared.Watch data.shared.alone data.shared.owned
        data.shared.forget_halves scale.train.read_mean
    """,
}
