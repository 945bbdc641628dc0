"""Every case that was found wrong once, with the tests that show what is right: one line a case, in our own words.

The cases are inputs and what is right for each: files, servers, runs, judges' replies, rows of published data sets,
hostile input, training. `test_cases.py` holds this table against the tests, and against the cases where these are at
hand. In brackets stands the row of the test's own table, where it has one.
"""

# ruff: noqa: E501 - a table with one case a line

from __future__ import annotations

PUBLISHED, SERVERS, THINKING, SAYS = "test_published.py::", "test_servers.py::", "test_thinking.py::", "test_says.py::"
KEEPING, RATING = "test_keeping.py::", "test_rating.py::"
REPLY = "test_reply_corpus.py::test_a_reply_is_read_as_meant_or_not_at_all"
ROW = "test_published.py::test_a_data_set_of_the_hub_is_read_as_it_stands"
OTHER, MARGIN = (
    PUBLISHED + "test_the_other_values_of_a_judgement",
    PUBLISHED + "test_how_strongly_a_data_set_prefers_is_the_margin",
)
TEMPLATES, KEYS, NUMBERS = (
    "hostile/test_hostile_templates.py::",
    "hostile/test_hostile_keys.py::",
    "hostile/test_hostile_numbers.py::",
)
WIRE, FILES, CONFIG = (
    "hostile/test_hostile_servers.py::",
    "hostile/test_hostile_files.py::",
    "hostile/test_hostile_config.py::",
)
COLUMNS, MODELS, SCREEN = (
    "hostile/test_hostile_columns.py::",
    "hostile/test_hostile_models.py::",
    "hostile/test_hostile_screen.py::",
)
FOLDERS, SIGNALS, STORE = (
    "hostile/test_hostile_folders.py::",
    "hostile/test_hostile_signals.py::",
    "hostile/test_hostile_store.py::",
)
TRAIN, ARCHITECTURES = "test_train.py::", "test_architectures.py::"

CASES: dict[str, dict[str, tuple[str, ...]]] = {
    "files": {
        "NaN for a completion": (PUBLISHED + "test_nan_is_null_everywhere",),
        "NaN for an input": (PUBLISHED + "test_nan_is_null_everywhere",),
        "numbers for texts": (PUBLISHED + "test_numbers_are_texts_wherever_a_text_is_asked",),
        "messages as JSON, or as Python shows them": (PUBLISHED + "test_messages_as_text_are_messages",),
        "a prompt in parts": (PUBLISHED + "test_a_prompt_of_parts_is_their_text_and_a_picture_drops_its_row", PUBLISHED + "test_parts_and_roles_by_any_name"),
        "two tables in one, each other's columns null": (PUBLISHED + "test_two_tables_put_together_are_two_tables",),
        "null in a list of completions": (PUBLISHED + "test_nan_is_null_everywhere",),
        "a true and a false label": (PUBLISHED + "test_completions_that_are_labelled_alone_are_put_together", PUBLISHED + "test_labels_by_other_words"),
        "an id and a column of one's own": (PUBLISHED + "test_own_columns_travel_to_every_export", PUBLISHED + "test_own_columns_travel_to_the_exports_of_rows"),
        "semicolons, a list in lines, ndjson, a long cell, nothing": (PUBLISHED + "test_files_as_people_have_them", PUBLISHED + "test_a_file_of_something_else_is_named_with_the_fix", PUBLISHED + "test_an_empty_file_is_named_with_the_fix"),
        "roles by other names": (PUBLISHED + "test_parts_and_roles_by_any_name",),
    },
    "servers": {
        "a field is refused": (SERVERS + "test_a_refused_field_is_sent_the_other_way_once_and_told", SERVERS + "test_a_server_that_accepts_three_fields_is_found_out_field_by_field", SERVERS + "test_a_run_of_defaults_on_a_server_of_three_fields_ends_done"),
        "reasons to finish by other words": (SERVERS + "test_finish_reasons_of_any_wording_are_understood", WIRE + "test_a_text_with_an_unknown_reason_is_kept_and_told_of_once"),
        "an error in a 200": (SERVERS + "test_an_error_in_a_200_is_shown_in_the_servers_words",),
        "a content filter in its forms": (SERVERS + "test_every_form_of_a_content_filter_is_one_filtered_completion", SERVERS + "test_a_prompt_that_a_content_filter_stops_is_a_counted_drop"),
        "content in parts, or only in the reasoning": (SERVERS + "test_contents_of_other_shapes_are_read", SERVERS + "test_an_answer_only_in_the_reasoning_is_an_error_that_names_the_field"),
        "credit that ends": (SERVERS + "test_credit_that_ends_after_20_calls_stops_the_run", SERVERS + "test_an_account_without_credit_stops_the_run"),
        "log-probabilities of the thinking": (THINKING + "test_a_soft_verdict_reads_the_token_where_the_content_begins", THINKING + "test_log_probabilities_that_do_not_fit_the_content_are_none"),
        "soft verdicts without log-probabilities": (SERVERS + "test_soft_verdicts_without_log_probabilities_stop_within_ten",),
        "a page, a stream, an address without v1": (SERVERS + "test_what_is_no_json_shows_its_first_words_and_the_address", SERVERS + "test_another_kind_of_server_stops_the_run_within_ten"),
        "a certificate, a proxy": (SERVERS + "test_a_certificate_that_is_not_trusted_is_named_with_the_fix", SERVERS + "test_a_proxy_that_does_not_answer_is_named_without_its_password"),
    },
    "runs": {
        "lines by the default template": (SAYS + "test_lines_are_asked_for_where_lines_are_read", RATING + "test_the_default_template_asks_for_what_is_read"),
        "a pipeline that ends in samples or checks": (KEEPING + "test_samples_become_sft_data", KEEPING + "test_what_checks_pass_becomes_sft_data"),
        "pairs of what passed its checks": (KEEPING + "test_a_pipeline_that_makes_nothing_of_use_is_an_error[pairs of survivors]",),
        "from another folder": (SAYS + "test_a_projects_edited_template_counts_from_any_folder", SAYS + "test_a_file_beside_the_pipeline_comes_before_one_in_the_current_folder"),
        "a second one of the name": (SAYS + "test_a_second_pipeline_of_the_same_name_leaves_the_first_ones_folder_alone", SAYS + "test_a_second_judge_and_a_second_audit_leave_the_firsts_alone"),
        "all unparsed, all cut": (SAYS + "test_unparsed_judgements_are_no_success_and_are_asked_for_again", SAYS + "test_cut_completions_are_told_with_what_to_raise"),
        "a start that fails after a run": (SAYS + "test_a_failed_start_hides_no_finished_run_and_says_why_it_failed",),
        "an export to a file": (SAYS + "test_an_export_is_the_file_that_its_name_says",),
        "two judging stages, shown": (SAYS + "test_each_of_two_compares_shows_its_own_preference", SAYS + "test_each_branch_shows_its_own_preference"),
        "two system messages": (SAYS + "test_a_prompts_and_a_samplers_system_messages_are_sent_as_one", SERVERS + "test_two_system_messages_are_joined"),
        "Ctrl-C twice": (SAYS + "test_two_ctrl_c_leave_within_a_second",),
    },
    "replies": {
        "one is excellent": (REPLY + "[lines: inverted: a legend from excellent to very poor]",),
        "out of ten": (REPLY + "[lines: another scale: ratings out of 10]",),
        "a later field": (REPLY + "[json: a later field of the same rating]",),
        "texts of the other one": (REPLY + "[json: each item names the other completion]",),
        "a verdict and another one": (REPLY + "[choice: a final answer that differs]",),
        "a second reading": (REPLY + "[choice: a second reading]",),
        "the least first": (REPLY + "[ranking: from worst: least helpful first]",),
        "an order in JSON": (REPLY + "[ranking: JSON from worst: worst_to_best]",),
        "a penalty behind": (REPLY + "[score: changed after: a penalty that leaves]",),
        "higher is worse": (REPLY + "[score: meaning otherwise: higher is worse]",),
        "a legend as asked": (REPLY + "[lines: a legend as asked: worst to best]",),
        "a rating in the text": (REPLY + "[lines: a rating in what it is about]",),
        "reasoning in a block": (REPLY + "[lines: reasoning in a block]",),
        "a point and a nought": (REPLY + "[json: whole numbers with a point]",),
        "a conclusion": (REPLY + "[choice: a concluding sentence]",),
        "the arena's arrows": (REPLY + "[choice: arena hard]",),
        "a result": (REPLY + "[score: result]",),
    },
    "shapes": {
        "ultrafeedback_binarized": (ROW + "[HuggingFaceH4/ultrafeedback_binarized]", MARGIN + "[HuggingFaceH4/ultrafeedback_binarized]"),
        "tulu 3": (ROW + "[allenai/llama-3.1-tulu-3-8b-preference-mixture]", PUBLISHED + "test_what_data_sets_say_of_themselves_travels"),
        "HelpSteer2, ratings": (ROW + "[nvidia/HelpSteer2 (default)]", PUBLISHED + "test_preferences_of_several_are_those_of_the_rule_all", "test_recipes.py::test_a_helpsteer_file_into_a_reward_model"),
        "HelpSteer2, preferences": (ROW + "[nvidia/HelpSteer2 (preference)]", MARGIN + "[nvidia/HelpSteer2 (preference)]", OTHER),
        "HelpSteer3": (ROW + "[nvidia/HelpSteer3 (preference)]", MARGIN + "[nvidia/HelpSteer3 (preference)]", OTHER),
        "argilla's UltraFeedback": (ROW + "[argilla/ultrafeedback-binarized-preferences-cleaned]",),
        "argilla's Orca": (ROW + "[argilla/distilabel-intel-orca-dpo-pairs]", OTHER + "[argilla/distilabel-intel-orca-dpo-pairs]"),
        "argilla's Capybara": (ROW + "[argilla/distilabel-capybara-dpo-7k-binarized]",),
        "argilla's mixture": (ROW + "[argilla/dpo-mix-7k]",),
        "HH": (ROW + "[Anthropic/hh-rlhf]",),
        "UltraFeedback": (ROW + "[openbmb/UltraFeedback]", PUBLISHED + "test_preferences_of_several_are_those_of_the_rule_all", "test_data_stage.py::test_trainers_learn_from_ratings_and_rankings_by_way_of_pairs"),
        "Nectar": (ROW + "[berkeley-nest/Nectar]", PUBLISHED + "test_preferences_of_several_are_those_of_the_rule_all", "test_data_stage.py::test_trainers_learn_from_ratings_and_rankings_by_way_of_pairs"),
        "SHP": (ROW + "[stanfordnlp/SHP]", MARGIN + "[stanfordnlp/SHP]", OTHER),
        "SafeRLHF": (ROW + "[PKU-Alignment/PKU-SafeRLHF]", PUBLISHED + "test_two_judgements_of_a_row_that_conflict_are_no_preference", PUBLISHED + "test_what_data_sets_say_of_themselves_travels"),
        "Skywork": (ROW + "[Skywork/Skywork-Reward-Preference-80K-v0.2]",),
        "RewardBench": (ROW + "[allenai/reward-bench (filtered)]", PUBLISHED + "test_what_data_sets_say_of_themselves_travels"),
        "RewardBench 2": (ROW + "[allenai/reward-bench-2]", PUBLISHED + "test_each_of_several_right_completions_is_preferred"),
        "the arena's conversations": (ROW + "[lmsys/chatbot_arena_conversations]", OTHER),
        "MT-Bench": (ROW + "[lmsys/mt_bench_human_judgments]", PUBLISHED + "test_the_turn_that_was_judged_is_the_one_that_is_compared"),
        "the arena, 140k": (ROW + "[lmarena-ai/arena-human-preference-140k]", PUBLISHED + "test_a_prompt_of_parts_is_their_text_and_a_picture_drops_its_row"),
        "the arena, 55k": (ROW + "[lmsys/lmsys-arena-human-preference-55k]", PUBLISHED + "test_the_arena_in_a_table_is_the_arena"),
        "Open Assistant": (ROW + "[OpenAssistant/oasst2]", PUBLISHED + "test_siblings_with_ranks_are_conversations_too"),
        "summaries": (ROW + "[openai/summarize_from_feedback (comparisons)]", OTHER),
        "WebGPT": (ROW + "[openai/webgpt_comparisons]", OTHER),
        "Intel's Orca": (ROW + "[Intel/orca_dpo_pairs]",),
        "LLaMA-Factory": (ROW + "[LLaMA-Factory's pairs]",),
        "KTO": (ROW + "[trl-lib/kto-mix-14k]", PUBLISHED + "test_completions_that_are_labelled_alone_are_put_together", "test_recipes.py::test_a_kto_file_into_a_reward_model"),
        "Snorkel": (ROW + "[snorkelai/Snorkel-Mistral-PairRM-DPO]",),
        "ArmoRM": (ROW + "[princeton-nlp/llama3-ultrafeedback-armorm]",),
        "INF": (ROW + "[infly/INF-ORM-Preference-Magnitude-80K]", MARGIN + "[infly/INF-ORM-Preference-Magnitude-80K]"),
        "Stack Exchange": (ROW + "[HuggingFaceH4/stack-exchange-preferences]",),
        "UltraInteract": (ROW + "[openbmb/UltraInteract_pair]",),
        "steps": (PUBLISHED + "test_steps_are_not_rival_completions",),
        "AlpacaFarm": (ROW + "[tatsu-lab/alpaca_farm]", OTHER),
        "Prometheus": (ROW + "[prometheus-eval/Preference-Collection]", OTHER),
    },
    "hostile": {
        "a pickle by a template's variable": (TEMPLATES + "test_plan_runs_no_code_of_a_template_by_any_variable", TEMPLATES + "test_plan_runs_no_code_of_any_kind", TEMPLATES + "test_every_variable_is_plain_data_to_its_last_attribute"),
        "globals of a template's function": (TEMPLATES + "test_globals_are_refused_with_file_and_fix",),
        "a template that never ends, grows or nests": (TEMPLATES + "test_a_judge_prompt_ends_by_the_clock", TEMPLATES + "test_a_chat_template_ends_by_the_clock", TEMPLATES + "test_pow_in_a_chat_template_ends_within_seconds", TEMPLATES + "test_a_template_takes_no_more_memory_than_it_may[center filter]", TEMPLATES + "test_a_template_is_not_nested_without_end[100,000 nested conditions]", TEMPLATES + "test_an_odd_chat_template_is_refused_with_its_folder[a number]"),
        "a key that a server repeats": (KEYS + "test_a_key_that_a_server_repeats_is_masked[a refusal]", KEYS + "test_a_key_in_escapes_of_broken_json_is_masked", KEYS + "test_a_run_whose_completions_hold_the_key_in_every_form_keeps_it_nowhere[of 13 characters]"),
        "a redirect to no web address": (WIRE + "test_a_redirect_to_what_is_no_web_address_is_a_sentence",),
        "a log-probability of no probability": (NUMBERS + "test_a_wrong_log_probability_fails_its_row_now_and_in_every_later_run", NUMBERS + "test_a_store_that_holds_such_an_answer_is_found_out_and_asked_again"),
        "a flood from a server": (WIRE + "test_a_flood_is_stopped_at_a_bound_that_is_named", WIRE + "test_four_gzip_bombs_of_1_gb_at_once_stay_under_1_gb"),
        "a flood from a file": (FILES + "test_what_is_no_file_is_refused_at_once[a sparse file of 10 GB]", FILES + "test_ten_gigabytes_of_nothing_take_little_memory", FILES + "test_a_gzip_bomb_is_read_a_piece_at_a_time", FILES + "test_a_table_of_many_columns_is_read_in_linear_time", FILES + "test_millions_of_rows_of_one_text_are_refused_unread", FILES + "test_the_worst_stay_under_a_gigabyte[10^8 texts in one row]", CONFIG + "test_a_text_that_no_file_should_hold[10 MB of 3,000,000 values]", CONFIG + "test_1_500_000_values_are_refused_in_seconds_and_little_memory"),
        "a pipe": (FILES + "test_what_is_no_file_is_refused_at_once[a pipe]", FILES + "test_the_whole_command_ends_at_a_pipe"),
        "stages, aspects and schemas without end": (CONFIG + "test_5_000_pair_stages_are_checked_in_seconds", CONFIG + "test_a_set_of_a_stranger[100,000 aspects]", CONFIG + "test_a_check_ends[a schema that doubles]"),
        "Parquet that Python cannot hold": (COLUMNS + "test_a_column_that_python_cannot_hold", COLUMNS + "test_a_flipped_bit_is_read_or_named"),
        "weights that are none": (MODELS + "test_a_folder_is_refused_by_its_files[weights-that-are-a-pickle]", MODELS + "test_a_command_says_it_in_one_line"),
        "what acts on a screen": (SCREEN + "test_a_data_files_names_are_shown_escaped_by_every_command_that_follows", SCREEN + "test_a_data_files_models_are_shown_escaped_beside_their_strengths", SCREEN + "test_a_run_of_somebody_else_cannot_act_on_the_screen", SCREEN + "test_the_list_of_a_servers_models_is_shown_escaped", SCREEN + "test_json_escapes_it_and_keeps_its_value"),
        "a person's files in a run": (FOLDERS + "test_what_a_person_put_into_a_run_folder_stays[an export in dataset/hh]", FOLDERS + "test_a_stage_that_is_new_replaces_nothing"),
        "a person's model, and one of a name of the tool's": (FOLDERS + "test_what_a_person_put_into_a_run_folder_stays[models/d.old]", FOLDERS + "test_a_models_name_is_no_place_of_the_tools[d.partial]", FOLDERS + "test_two_models_side_by_side_are_two_models"),
        "data sets behind a link": (FOLDERS + "test_a_stranger_in_the_place_of_what_a_run_writes_stops_it[dataset is a link]",),
        "home": (FOLDERS + "test_what_is_written_to_home_is_there", FOLDERS + "test_what_lies_in_home_is_found"),
        "a full disk": (SIGNALS + "test_a_disk_that_fills_while_files_are_written_repeats_no_call", SIGNALS + "test_a_disk_that_fills_is_a_sentence_and_loses_nothing", SIGNALS + "test_a_folder_for_temporary_files_that_is_none_is_named"),
        "a full screen": (SIGNALS + "test_what_finds_no_room_on_the_screen_fails",),
        "a store of wrong answers, or with another's log": (STORE + "test_an_answer_that_is_none_is_found_and_asked_again", STORE + "test_a_wal_of_another_store_is_noticed_by_name"),
        "a budget and a prune": (STORE + "test_spent_is_spent[cache prune by age]",),
        "an early Ctrl-C": (SIGNALS + "test_ctrl_c_while_the_program_is_loaded_is_silent", SIGNALS + "test_nothing_is_imported_before_signals_are_attended_to"),
        "little memory": (SIGNALS + "test_too_little_memory_is_a_sentence",),
        "a search for one's own mark": ("hostile/test_hostile_fences.py::test_no_search_finds_a_text_that_holds_its_own_mark",),
        "a header of many columns": (FILES + "test_a_table_of_many_columns_is_read_in_linear_time",),
        "weights that diverged, attention from a hub, half a download, a template of nothing": (MODELS + "test_what_a_library_stumbles_over_is_a_sentence[nan-weights]", MODELS + "test_a_folder_runs_as_any_other_and_nothing_of_it_is_obeyed[attention-from-the-hub]", MODELS + "test_a_folder_is_refused_by_its_files[download-cut-short]", TEMPLATES + "test_an_odd_chat_template_is_refused_with_its_folder[only a comment]"),
        "rows of other types, half a surrogate pair": (COLUMNS + "test_a_judged_row_with_a_value_of_another_type_at_every_place[UltraFeedback]", COLUMNS + "test_a_row_that_cannot_be_used_is_dropped_and_counted[half a pair in a reference]"),
    },
    "training": {
        "1: tensors that are missing or renamed": (TRAIN + "test_a_base_without_all_its_tensors_is_refused",),
        "2: two end tokens": (ARCHITECTURES + "test_sfts_first_loss_is_that_of_plain_transformers_with_the_router_loss_beside_it", ARCHITECTURES + "test_dpos_first_loss_is_ln_2_and_what_the_base_says_of_itself_is_saved", ARCHITECTURES + "test_a_rollout_ends_at_the_first_of_any_end_token", ARCHITECTURES + "test_ppos_first_ratio_is_1_and_its_policy_is_saved_with_every_end_token"),
        "3: dropout by a function": (ARCHITECTURES + "test_dpos_first_loss_is_ln_2_and_what_the_base_says_of_itself_is_saved", ARCHITECTURES + "test_a_first_loss_of_dpo_that_is_not_ln_2_ends_the_training", TRAIN + "test_the_first_dpo_loss_is_ln_2_and_its_logprobs_are_those_of_the_base_model"),
        "4: a reward model without a pad token": (TRAIN + "test_a_reward_model_orders_a_padded_batch_as_single_texts", TRAIN + "test_a_reward_model_that_scores_a_padded_batch_otherwise_is_not_saved", ARCHITECTURES + "test_a_reward_models_first_loss_and_scores_are_those_of_plain_transformers"),
        "5: validation by any batch size": (TRAIN + "test_validation_does_not_depend_on_its_batch_size",),
        "6: a BOS that the template leaves out": (TRAIN + "test_every_shipped_template_begins_as_the_tokenizer_begins_its_texts", TRAIN + "test_a_given_template_begins_as_the_tokenizer_begins_its_texts", TRAIN + "test_a_template_stays_as_it_is_where_the_tokenizer_adds_no_bos"),
        "7: experts": (ARCHITECTURES + "test_sfts_first_loss_is_that_of_plain_transformers_with_the_router_loss_beside_it", ARCHITECTURES + "test_dpos_first_loss_is_ln_2_and_what_the_base_says_of_itself_is_saved", ARCHITECTURES + "test_ppos_first_ratio_is_1_and_its_policy_is_saved_with_every_end_token"),
        "8: weights, masks and columns that nobody used": ("test_training_data.py::test_what_a_file_says_of_its_turns_is_honoured_or_counted", "test_training_data.py::test_masked_turns_reach_the_trainer_and_its_key", "test_training_data.py::test_margins_that_a_trainer_does_not_use_are_told"),
        "9: longer than the model's window": (TRAIN + "test_rows_are_no_longer_than_the_models_context",),
        "10: a base that no reward model can stand on": (ARCHITECTURES + "test_a_classifier_of_one_label_is_a_base_and_one_of_two_is_not", ARCHITECTURES + "test_an_architecture_without_a_classifier_is_refused_in_a_sentence"),
        "11: two processes": ("test_processes.py::test_two_processes_have_the_losses_gradients_and_weights_of_one", "test_processes.py::test_more_processes_than_rows_at_once_and_a_launcher_for_one_are_refused"),
        "12: a base without a chat template": ("test_chat_templates.py::test_a_base_without_a_chat_template_is_given_one_by_every_trainer",),
        "13: rows that are all held out": ("test_training_data.py::test_rows_that_are_all_withheld_are_told_with_the_way_to_use_them",),
        "14: every row, and a validation file": ("test_training_data.py::test_every_row_is_trained_on_where_that_is_said", "test_training_data.py::test_a_file_of_ones_own_validates_and_shares_no_prompt_with_training"),
        "15: an adapter as base": ("test_lora.py::test_rlaif_train_and_a_pipeline_take_an_adapted_base", "test_lora.py::test_a_full_training_of_an_adapted_base_starts_from_both"),
        "16: no marks, thinking, a system message": ("test_chat_templates.py::test_without_its_marks_a_template_teaches_the_same", "test_chat_templates.py::test_thinking_is_switched_off_by_a_template_argument_in_training_as_in_use", "test_chat_templates.py::test_a_system_message_that_the_format_lacks_is_refused_by_row_merged_or_skipped"),
        "17: a last step of fewer rows": (TRAIN + "test_a_step_of_uneven_batches_weighs_every_row_alike",),
        "18: the settings of others": ("test_train_running.py::test_the_settings_of_others_are_named_by_ours", "test_train_running.py::test_a_training_ends_after_max_steps_with_its_schedule", "test_train_running.py::test_weight_decay_pulls_weights_and_neither_biases_nor_norms"),
        "19: what is left of a training": ("test_train_running.py::test_every_step_is_a_line_beside_the_model_once_also_of_a_training_that_was_interrupted", "test_train_running.py::test_the_best_step_by_validation_is_kept_also_when_a_training_resumes", "test_train_left.py::test_ppos_value_model_lies_in_the_models_folder_and_is_no_part_of_the_policy"),
    },
}  # fmt: skip

# Cases of training without a test of their own yet, by their numbers
OPEN = (20,)
COUNTS = {"files": 11, "servers": 10, "runs": 11, "replies": 17, "shapes": 35, "hostile": 27, "training": 20}
