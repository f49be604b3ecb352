"""The public names that test_inputs.py does not call, each under the reason: the test that does it,
or why there is nothing to do.
"""

ELSEWHERE: dict[str, str] = {
    "values that cannot be wrong: errors, protocols, and records that the package itself fills": """
        data.datasets.DataSet data.images.ImageFile data.images.ImageFolder data.latents.shards.Plan
        data.latents.shards.ShardFacts data.toy.Toy engine.checkpoint.Checkpoint engine.parallel.World errors.CFMError
        errors.CheckpointCorruptError errors.CheckpointError errors.ConfigError errors.DataError errors.DiskFullError
        errors.DistributedError errors.DivergenceError errors.ResumeMismatchError errors.UntrustedFileError
        evaluate.inception.Extractor evaluate.inception.Features evaluate.reference.Reference evaluate.reference.Statistics
        guidance.Guided models.classifier.JudgeSettings paths.FlowSample paths.Path runs.run.Run runs.loop.Terminated
        runs.sampling.Settings runs.spec.Spec samplers.Evaluations scale.budget.Split scale.dry_run.Made scale.train.Options
        terms.Draw terms.Evaluated terms.Term viz.results.Metric viz.style.Picture
    """,
    "the command line, whose arguments test_cli_fuzz.py writes": """
        _internal.places.check_file _internal.places.check_folder _internal.places.expanded
        _internal.places.inside _internal.places.listed _internal.places.unlisted
        _internal.terminal.Notes _internal.terminal.fail _internal.terminal.run_command
        cli.arguments.Common cli.arguments.OnDevice cli.arguments.Seeded cli.arguments.names_of cli.arguments.show
        cli.compare.Compare cli.compare.compare_suite cli.demo.Demo cli.evaluate.Evaluate cli.export.Export cli.main
        cli.prepare.Prepare cli.sample.Sample cli.samples.drawing cli.samples.picture cli.samples.sample_file
        cli.scale.ScalePrepare cli.scale.ScaleSample cli.scale.ScaleTrain cli.train.Train cli.train.Training demo.demo
        demo.shipped_pictures demo.table evaluate.card.card_of evaluate.card.method_name evaluate.card.told evaluate.images.evaluate_samples
        evaluate.images.features_of evaluate.images.image_batches evaluate.images.npz_of
        evaluate.images.opened evaluate.inception.StandIn evaluate.inception.inception
        evaluate.inception.open_extractor evaluate.reference.names_in evaluate.reference.statistics_of
        evaluate.samples.evaluate
        evaluate.samples.evaluate_file evaluate.samples.save_samples runs.reads.check_read runs.reads.idle_fields runs.reads.unread
        runs.folder.check_kind runs.folder.home_for
        runs.folder.is_file_of_weights runs.folder.samples_of runs.sampling.draw_rows runs.sampling.draw_part
        runs.sampling.draw_run
        runs.sampling.captions_in_turn runs.sampling.guided
        runs.sampling.in_parts runs.sampling.labels_of runs.sampling.noise_of runs.sampling.recorded
        runs.sampling.settings_of
        runs.sampling.solve runs.sampling.velocity_of runs.spec.spec_of scale.budget.activation_bytes
        scale.budget.free_memory
        scale.budget.peak_bytes scale.budget.split_batch scale.budget.state_bytes scale.commands.features_command
        scale.commands.prepare_command scale.commands.sample_command scale.commands.train_command scale.dry_run.dry_run
        scale.official.export_run scale.official.start_from scale.sample.count_samples scale.sample.drawing
        scale.sample.sample_imagenet scale.train.opened_teacher scale.train.train_imagenet
    """,
    "files and folders, which the tests of data, checkpoints, runs and official weights damage": """
        _internal.files.fingerprint _internal.files.hash_of_file _internal.files.hash_of_json
        _internal.files.inside _internal.files.publish _internal.files.replacing
        _internal.hub.flaw _internal.hub.folder_of _internal.hub.kept _internal.hub.refusal
        _internal.lazy.optional _internal.lazy.outside_graphs _internal.lazy.random_kept
        data.archive.is_archive data.archive.is_hidden data.archive.samples data.archive.unpack
        data.archive.unpacked data.batches.fitting data.cifar10.available data.cifar10.download data.cifar10.load
        data.datasets.codec_for data.datasets.each_image_set data.datasets.image_rows data.images.centre_crop
        data.images.decode data.images.find data.images.flat data.images.layout
        data.images.load data.images.named data.images.opened data.images.read data.latents.captions.captioned
        data.latents.captions.one_each data.latents.captions.read_captions data.latents.codec.Codec data.latents.codec.Scaling
        data.latents.codec.open_codec data.latents.codec.tiny_vae data.latents.features.TeacherFeatures
        data.latents.features.encode_features data.latents.prepare.plan_of data.latents.prepare.prepare
        data.latents.reader.Latents data.latents.reader.Pictures data.latents.reader.part_of data.latents.reader.prefetch
        data.latents.shards.Mapped data.latents.shards.ask_for data.latents.shards.check_hash
        data.latents.shards.check_sources data.latents.shards.facts_of data.latents.shards.facts_path
        data.latents.shards.npy data.latents.shards.read_facts
        data.latents.shards.is_done data.latents.shards.is_planned data.latents.shards.left_out
        data.latents.shards.map_shard data.latents.shards.open_plan
        data.latents.shards.read_index
        data.latents.shards.read_json data.latents.shards.write data.latents.shards.write_index
        data.latents.shards.write_shard
        data.mnist.available data.mnist.download data.mnist.load data.pca.PCA data.root.checkout data.root.damaged
        data.root.data_root data.root.keep data.root.missing data.root.read_file data.root.read_gzip
        data.root.scratch data.shared.in_turn data.teachers.teacher_for engine.checkpoint.check_storable
        engine.checkpoint.exists engine.checkpoint.latest engine.checkpoint.load engine.checkpoint.once
        engine.checkpoint.ordered engine.checkpoint.save engine.checkpoint.write_bytes engine.parallel.joined
        engine.parallel.ranks_of_environment evaluate.judges.Judge evaluate.judges.assess
        evaluate.judges.judge_for evaluate.judges.load_judge evaluate.judges.save_judge
        evaluate.judges.train_judge models.classifier.fit_classifier models.classifier.one_thread models.classifier.restored
        models.classifier.trained models.encoders.Encoder evaluate.clip.ClipScore
        models.text.ClipText models.text.check_texts models.text.clip_parts models.text.open_clip
        models.encoders.teacher models.official.export_official models.official.read_weights pretrained.folder
        pretrained.load
        pretrained.make pretrained.run_of runs.folder.Located runs.machine.facts runs.machine.finite runs.loop.resumes runs.folder.located
        runs.folder.make_folder
        runs.machine.peak_memory runs.folder.read_config runs.folder.saved_recipe runs.loop.train runs.machine.write_json
        viz.style.save
    """,
    "parts inside a network, a loss or a solver, whose caller has checked their arguments": """
        _internal.kernels.cosine _internal.kernels.gram _internal.kernels.inverse_root _internal.kernels.root
        _internal.kernels.standardize engine.compiled.blocks_of engine.compiled.compile_parts engine.compiled.is_compiled
        engine.compiled.unsplit engine.exchange.Exchange engine.sharded.exchanging engine.sharded.full engine.sharded.is_sharded
        engine.sharded.load_optimizer engine.sharded.load_weights engine.sharded.optimizer_state engine.sharded.shard
        engine.sharded.spread engine.sharded.weights metrics.check_covariance perturbations.shuffle_share models.embed.LabelEmbedder
        models.embed.Labelled models.embed.Network models.embed.run_block
        models.embed.TimestepEmbedder models.embed.autocasting models.embed.check_blocks models.embed.check_input
        models.embed.in_float32 models.embed.rotary_2d models.embed.rotate models.embed.sincos_1d models.embed.sincos_2d
        models.embed.time_frequencies models.mlp.ResidualBlock models.sit.Attention models.sit.FeedForward
        models.sit.FinalLayer models.sit.PatchEmbed
        data.captions.Scene data.captions.Thing data.captions.encode data.captions.is_held_out data.captions.sentence
        data.captions.shows
        evaluate.reader.Reader evaluate.reader.Score evaluate.reader.one_word_off evaluate.reader.reader_for
        evaluate.reader.reading evaluate.reader.rejected evaluate.reader.score_of evaluate.reader.score_table
        evaluate.reader.scores
        evaluate.reader.train_reader data.words.Pictures data.words.Standard data.words.render data.words.scenes
        models.mmdit.JointBlock models.mmdit.Stream models.text.WordEmbedding models.sit.initialize models.sit.unpatchify
        models.unet.ConvBlock models.unet.SelfAttention models.unet_sizes.Norm models.unet_sizes.check_sizes
        models.unet_sizes.widths_of runs.machine.check_batch
        models.sit.SiTBlock models.sit.attend models.sit.modulate perturbations.other_row runs.segments.check_same_data
        runs.segments.check_same_recipe runs.segments.new_config runs.segments.note_on_schedule runs.throughput.Clock
        runs.throughput.peak_flops runs.throughput.train_flops runs.throughput.utilisation samplers.euler samplers.heun
        samplers.midpoint samplers.rk4 terms.Alignment terms.noise_like
    """,
    "the contract of one's own network: tests/test_own_network.py and test_trainable.py give it wrong ones": """
        _internal.networks.check_caption _internal.networks.null_condition _internal.networks.takes_captions
        _internal.networks.as_features _internal.networks.as_velocity_of _internal.networks.check_keywords
        _internal.networks.check_labels_of _internal.networks.check_model engine.trainable.check_trainable
        engine.trainable.copied _internal.networks.made_in_float32 _internal.networks.seeded
        _internal.networks.asked _internal.networks.evaluating _internal.networks.has_null
        _internal.networks.classes_of _internal.networks.needs_labels _internal.networks.other_dtype
        _internal.networks.null_label _internal.networks.takes _internal.networks.takes_labels engine.batches.Running
    """,
    "what a Trainer is made of: tests/test_training.py, test_trainable.py and test_numbers.py give it wrong ones": """
        engine.batches.as_batch engine.batches.micro_batches engine.batches.shards_in engine.batches.stream
        engine.guard.Guard
        engine.optimizers.backward engine.optimizers.Groups
        engine.optimizers.check_optimizer engine.optimizers.clip_gradients
        engine.optimizers.make_optimizer engine.optimizers.update engine.settings.Settings
        engine.settings.autocast engine.settings.check_objective engine.state.State
    """,
    "what needs a trained run or a teacher: tests/test_experiments.py, test_imagenet.py, test_recipes.py": """
        data.teachers.SmallTeacher data.teachers.Tokens data.teachers.train_teacher evaluate.measures.reference_rows
        methods.Arm
        methods.Data methods.Method methods.Needed methods.arms methods.debiasing objective.repa runs.imagenet.Given
        runs.imagenet.build_imagenet_trainer runs.imagenet.preset_of runs.recipe.build_model
        runs.recipe.build_objective runs.recipe.build_trainer
    """,
    "answers of a learner: tests/test_course.py gives right and wrong ones": """
        course.check course.exercise course.exercises course.nb00_tour.move_by_hand course.nb00_tour.what_weight_does
        course.nb00_tour.which_end course.nb01_paths.find_the_bug course.nb01_paths.slow_start course.nb01_paths.two_ends
        course.nb01_paths.who_goes_down course.nb02_flow_matching.floor_by_hand course.nb02_flow_matching.how_long
        course.nb02_flow_matching.mean_or_median course.nb02_flow_matching.repaired_coupling
        course.nb02_flow_matching.training_loop
        course.nb03_trajectory_drift.blind_spot course.nb03_trajectory_drift.forgotten course.nb03_trajectory_drift.landing
        course.nb03_trajectory_drift.shortfall course.nb03_trajectory_drift.split_errors
        course.nb03_trajectory_drift.two_samplers
        course.nb04_contrastive_flow_matching.best_velocity course.nb04_contrastive_flow_matching.gap_factor
        course.nb04_contrastive_flow_matching.lowest_loss course.nb04_contrastive_flow_matching.mean_of_other_class
        course.nb04_contrastive_flow_matching.undo
        course.nb04_contrastive_flow_matching.whole_loss course.nb05_vecor.same_optimum course.nb05_vecor.gain_of_shifts
        course.nb05_vecor.shuffled_channels
        course.nb05_vecor.latent_negative course.nb05_vecor.noise_share course.nb06_dispersive.cosine_floor
        course.nb06_dispersive.covariance_floor course.nb06_dispersive.free_of_charge course.nb06_dispersive.same_loss
        course.nb06_dispersive.grown course.nb07_sampling_and_guidance.control_share
        course.nb07_sampling_and_guidance.last_step_factor course.nb07_sampling_and_guidance.mirrored_interval
        course.nb07_sampling_and_guidance.repelled_scale course.nb07_sampling_and_guidance.guided_by_hand
        course.nb08_images.copies
        course.nb08_images.few_steps course.nb08_images.frechet_by_hand course.nb08_images.sign_flips
        course.nb08_images.three_verdicts course.nb09_sit.block_by_hand course.nb09_sit.first_loss course.nb09_sit.likeness
        course.nb09_sit.patches_there_and_back course.nb10_imagenet_full_scale.accumulation
        course.nb10_imagenet_full_scale.days course.nb10_imagenet_full_scale.memory
        course.nb10_imagenet_full_scale.own_term course.nb11_pictures_from_words.dropped_rows
        course.nb11_pictures_from_words.joint course.nb11_pictures_from_words.negative_prompt
        course.nb11_pictures_from_words.trained_in course.photographs.photographs
        course.number course.picture course.results course.say course.show course.solved course.table
    """,
    "figures: tests/test_viz*.py and test_figures*.py give each of them wrong shapes, NaN and nothing": """
        course.figures.film.film
        course.figures.coverage.neighbourhoods course.figures.features.feature_maps
        course.figures.features.paired_differences
        course.figures.features.profiles course.figures.features.similarity_maps course.figures.features.spreading
        course.figures.maps.plane_maps course.figures.maps.scalar_maps course.figures.marginals.conditional_velocities
        course.figures.marginals.path_coefficients course.figures.marginals.snapshots course.figures.marginals.spacetime
        course.figures.matching.pairings course.figures.matching.regression_slice course.figures.repulsion.attract_repel
        course.figures.repulsion.channel_stems course.figures.repulsion.class_paths course.figures.repulsion.loss_bowls
        course.figures.repulsion.negative_distances course.figures.tokens.table_map course.figures.tokens.token_maps
        viz.artists.arrow_key viz.artists.arrows viz.artists.bottom_legend viz.artists.color_bar viz.artists.contours
        viz.artists.foot viz.artists.legend viz.artists.legend_entry viz.artists.name_axes viz.artists.paths
        viz.artists.plane
        viz.artists.points viz.artists.side_legend viz.artists.square_limits viz.artists.squares
        viz.exact.fields_figure viz.fields.field_error
        viz.fields.point_samples viz.fields.trajectories viz.fields.velocity_fields viz.lines.curves viz.lines.pair_of
        viz.lines.running_mean viz.lines.training_curves viz.pictures.captioned viz.pictures.image_grid
        viz.pictures.perturbation_gallery
        viz.results.method_bars viz.results.quality_vs_steps viz.style.as_array viz.style.as_tensor viz.style.frame
        viz.style.method_color viz.style.named viz.style.new_figure viz.style.panels viz.style.plain viz.style.styled
        viz.style.text_width viz.style.to_png
    """,
    "explorers: tests/test_widgets.py gives each of them wrong values": """
        widgets._divergence.divergence widgets._exact_field.exact_field
        widgets._export.alive widgets._features.features widgets._guidance.guidance
        widgets._networks.packed widgets._own_data.own_data
        widgets._training.training widgets._trajectories.trajectories widgets._widget.Explorer
        widgets._widget.described widgets._words.words
        widgets._wrong_velocities.wrong_velocities
    """,
    "the lab: records, jobs and sentences, which test_sweep.py, test_experiments.py, test_diagnostics.py and others make": """
        cli.compare.report_suite evaluate.measures.judge_of evaluate.measures.measure
        lab.arms.balanced_labels lab.arms.conditions lab.arms.draw_samples lab.arms.trained_recipe lab.arms.velocity
        lab.diagnostics.field_values lab.diagnostics.path_values
        lab.figures.quality lab.figures.quality_figure lab.jobs.Job lab.jobs.Trial
        lab.jobs.estimate lab.jobs.jobs_of lab.jobs.key_of lab.jobs.run_job lab.measures.Sampling
        lab.measures.field_rows lab.measures.row_base lab.measures.rows_of lab.measures.sample_rows lab.statistics.Difference
        lab.statistics.paired_difference lab.store.Store lab.store.read_json lab.store.read_rows lab.store.write_rows lab.suites.Group
        lab.suites.Suite lab.suites.euler lab.suites.trials lab.sweep.Plan lab.sweep.compare lab.sweep.plan
        lab.workers.Outcome lab.workers.in_process lab.workers.in_workers viz.lab.Panel viz.lab.difference_curves
        viz.lab.difference_rows viz.lab.difference_scatter
    """,
    "files of others, which test_data.py, test_data_changes.py, test_downloads.py and test_security.py damage": """
        data.archive.read_to_end data.latents.shards.parse_npy data.root.fetching data.root.impatient data.shared.Watch data.shared.alone
        data.shared.forget_halves data.shared.owned evaluate.samples.load_samples runs.folder.read_mean
    """,
}
